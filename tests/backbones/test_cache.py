"""The cache at 8 bits: its numbers, its size, and its effect on logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention, cache, decoder
from frozen_jax.backbones.config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=61, width=48, layers=3, heads=6, kv_heads=2, head_dim=16, mlp_width=72, tied=True
)
INT8 = dataclasses.replace(CONFIG, cache="int8")
FREE_SLOTS = 5


def filled_cache(kind="int8", head_dim=16, dtype=jnp.float32):
  """A cache of 2 layers after 3 texts of 7 tokens, with 5 free slots, and its keys and values."""
  k, v = jax.random.normal(jax.random.key(0), (2, 2, 3, 7, 2, head_dim)).astype(dtype)
  v = v.at[0, 1, 2].set(0)
  mask = jnp.asarray(np.arange(7) >= np.array([[0], [3], [6]]), jnp.int32)
  return cache.from_prefill(k, v, mask, FREE_SLOTS, FREE_SLOTS, kind), k, v


def dequantized(slots, axis):
  return np.asarray(slots.numbers, np.float32) * np.expand_dims(slots.scales, axis)


def assert_rounded(slots, expected, axis):
  """Within half a step of 127ths of the largest number of each slot."""
  expected = np.asarray(expected, np.float32)
  steps = np.abs(expected).max(axis=axis, keepdims=True) / 127
  assert (np.abs(dequantized(slots, axis) - expected) <= 0.501 * steps).all()


def with_token(state, k, v):
  """The cache with one more token's keys and values in each layer."""
  advanced, slot = cache.advance(state)
  k = tuple(cache.write_slot(slots, new, slot, 3) for slots, new in zip(state.k, k, strict=True))
  v = tuple(cache.write_slot(slots, new, slot, 2) for slots, new in zip(state.v, v, strict=True))
  return advanced._replace(k=k, v=v)


def test_numbers_are_rounded_to_127ths_of_the_largest_of_their_slot():
  quantized, _, _ = filled_cache()
  plain, _, _ = filled_cache("")
  for layer in range(2):
    assert quantized.k[layer].numbers.dtype == quantized.v[layer].numbers.dtype == jnp.int8
    assert_rounded(quantized.k[layer], plain.k[layer], 2)
    assert_rounded(quantized.v[layer], plain.v[layer], 3)
  new = jax.random.normal(jax.random.key(4), (2, 2, 3, 1, 2, 16))
  quantized, plain = (with_token(state, *new) for state in (quantized, plain))
  assert_rounded(quantized.k[1], plain.k[1], 2)
  assert_rounded(quantized.v[0], plain.v[0], 3)
  assert quantized.v[0].scales[:, :, 7].all() and not quantized.v[0].scales[:, :, 8:].any()
  for name in ("mask", "position", "final_length", "used"):
    np.testing.assert_array_equal(getattr(quantized, name), getattr(plain, name))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("kind", ["", "int8"])
def test_more_free_slots_are_those_of_a_longer_cache(monkeypatch, kind, platform):
  monkeypatch.setattr(cache, "platform_of", lambda array: platform)
  found, k, v = filled_cache(kind)
  assert found.is_stacked == (platform == "tpu")
  longer = cache.from_prefill(k, v, found.mask[:, :7], FREE_SLOTS, FREE_SLOTS + 3, kind)
  jax.tree.map(np.testing.assert_array_equal, cache.with_free_slots(found, 3), longer)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_uses_the_dequantised_numbers(dtype, cap):
  quantized, _, _ = filled_cache()
  k, v = quantized.k[0], quantized.v[0]
  slots = (jnp.asarray(dequantized(k, 2)), jnp.asarray(dequantized(v, 3)))
  q, bias = (
    jax.random.normal(jax.random.key(n), shape)
    for n, shape in ((1, (3, 4, 6, 16)), (2, (1, 6, 1, 16)))
  )
  new = jax.random.normal(jax.random.key(3), (2, 3, 4, 2, 16)).astype(dtype)
  mask = jax.random.bernoulli(jax.random.key(5), 0.7, (3, 4, 16)).at[:, :, 7:12].set(False)
  attend = lambda slots, q, new: attention.attend_to_cache(q, slots, mask, bias, cap, tuple(new))
  expected = attend(slots, q, new.astype(jnp.float32))
  actual = attend((k, v), q.astype(dtype), new)
  assert actual.dtype == dtype
  tolerance = 1e-5 if dtype == "float32" else 5e-2
  np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=tolerance)


@pytest.mark.parametrize("dtype, share", [("float32", 0.27), ("bfloat16", 0.54)])
def test_it_takes_a_quarter_or_a_half_of_the_memory(dtype, share):
  size = lambda kind: sum(
    leaf.nbytes for leaf in jax.tree.leaves(filled_cache(kind, 64, dtype)[0][:2])
  )
  assert size("int8") <= share * size("")


def run(config, params, tokens, mask, more):
  """The logits of each further token, by single steps; and of all of them in one pass."""
  embed = lambda ids: decoder.embed(params, config, ids)
  prefill = jax.jit(decoder.prefill, static_argnums=(1, 4))
  _, state = prefill(params, config, embed(tokens), mask, more.shape[1])
  position_ids = jnp.broadcast_to(jnp.arange(more.shape[1]), more.shape)
  attention_mask = jnp.broadcast_to(
    jnp.tril(jnp.ones((more.shape[1],) * 2, bool)), (3, *[more.shape[1]] * 2)
  )
  hidden_after_cache = jax.jit(decoder.hidden_after_cache, static_argnums=1)
  in_one_call = hidden_after_cache(params, config, embed(more), state, position_ids, attention_mask)
  step, rows = jax.jit(decoder.step, static_argnums=1), []
  for index in range(more.shape[1]):
    states, state = step(params, config, embed(more[:, index : index + 1]), state)
    rows.append(states)
  both = jnp.concatenate(rows, axis=1), in_one_call
  return [np.asarray(decoder.logits(params, config, each)) for each in both]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_close_to_those_of_the_uncompressed_cache(dtype):
  params = decoder.random_params(CONFIG, jax.random.key(0), dtype)
  random = np.random.default_rng(0)
  tokens, more = random.integers(0, 61, (3, 11)), random.integers(0, 61, (3, FREE_SLOTS))
  mask = (np.arange(11) >= np.array([[0], [4], [9]])).astype(np.int32)
  quantized, plain = (run(config, params, tokens, mask, more) for config in (INT8, CONFIG))
  for actual, expected in zip(quantized, plain, strict=True):
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert 0 < difference < 0.03


@pytest.mark.parametrize(
  "kind, changes",
  [("", {"kinds": ("sliding", "full", "sliding"), "window": 3}), ("int8", {})],
)
def test_layers_in_one_array_compute_the_same(monkeypatch, kind, changes):
  """As on TPUs and GPUs, where the layers of a step are a loop."""
  config = dataclasses.replace(CONFIG, cache=kind, **changes)
  params = decoder.random_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, config.vocab_size)
  mask = jnp.ones((3, 6), jnp.int32).at[1, :2].set(0)
  position_ids = jnp.broadcast_to(jnp.arange(3), (3, 3))
  attention_mask = jnp.broadcast_to(jnp.tri(3) > 0, (3, 3, 3))

  def outputs():
    x = decoder.embed(params, config, tokens)
    _, state = decoder.prefill(params, config, x[:, :6], mask, 3, free_slots=3)
    found = [
      decoder.hidden_after_cache(params, config, x[:, 6:], state, position_ids, attention_mask)
    ]
    for index in range(6, 9):
      hidden, state = decoder.step(params, config, x[:, index : index + 1], state)
      found.append(hidden)
    return found, state.is_stacked

  apart, stacked = outputs()
  assert not stacked
  monkeypatch.setattr(cache, "platform_of", lambda array: "tpu")
  together, stacked = outputs()
  assert stacked
  for one, other in zip(apart, together, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
