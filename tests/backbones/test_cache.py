"""Keys and values at 8 bits: what they stand for, what they take, and what they change."""

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
NARROW = dataclasses.replace(CONFIG, cache="int8")
ROOM = 5


def kept(kind="int8", head_dim=16, dtype=jnp.float32):
  """A cache of 2 layers behind 3 texts of 7, with room for 5 more tokens, and what went in."""
  k, v = jax.random.normal(jax.random.key(0), (2, 2, 3, 7, 2, head_dim)).astype(dtype)
  v = v.at[0, 1, 2].set(0)
  mask = jnp.asarray(np.arange(7) >= np.array([[0], [3], [6]]), jnp.int32)
  return cache.from_prefix(k, v, mask, ROOM, ROOM, kind), k, v


def whole(slots, axis):
  return np.asarray(slots.numbers, np.float32) * np.expand_dims(slots.scales, axis)


def assert_rounded(slots, wanted, axis):
  """Within half a step of 127ths of the largest number of each slot."""
  wanted = np.asarray(wanted, np.float32)
  steps = np.abs(wanted).max(axis=axis, keepdims=True) / 127
  assert (np.abs(whole(slots, axis) - wanted) <= 0.501 * steps).all()


def longer(kept, k, v):
  """The cache with one more token's keys and values in each layer."""
  made, slot = cache.lengthened(kept)
  k = tuple(cache.put(slots, new, slot, 3) for slots, new in zip(kept.k, k, strict=True))
  v = tuple(cache.put(slots, new, slot, 2) for slots, new in zip(kept.v, v, strict=True))
  return made._replace(k=k, v=v)


def test_numbers_are_rounded_to_127ths_of_the_largest_of_their_slot():
  narrow, _, _ = kept()
  wide, _, _ = kept("")
  for at in range(2):
    assert narrow.k[at].numbers.dtype == narrow.v[at].numbers.dtype == jnp.int8
    assert_rounded(narrow.k[at], wide.k[at], 2)
    assert_rounded(narrow.v[at], wide.v[at], 3)
  new = jax.random.normal(jax.random.key(4), (2, 2, 3, 1, 2, 16))
  narrow, wide = (longer(each, *new) for each in (narrow, wide))
  assert_rounded(narrow.k[1], wide.k[1], 2)
  assert_rounded(narrow.v[0], wide.v[0], 3)
  assert narrow.v[0].scales[:, :, 7].all() and not narrow.v[0].scales[:, :, 8:].any()
  for name in ("mask", "position", "reach", "used"):
    np.testing.assert_array_equal(getattr(narrow, name), getattr(wide, name))


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_reads_what_the_numbers_stand_for(dtype, cap):
  narrow, _, _ = kept()
  k, v = narrow.k[0], narrow.v[0]
  wide = (jnp.asarray(whole(k, 2)), jnp.asarray(whole(v, 3)))
  q, bias = (
    jax.random.normal(jax.random.key(n), shape)
    for n, shape in ((1, (3, 4, 6, 16)), (2, (1, 6, 1, 16)))
  )
  new = jax.random.normal(jax.random.key(3), (2, 3, 4, 2, 16)).astype(dtype)
  visible = jax.random.bernoulli(jax.random.key(5), 0.7, (3, 4, 16)).at[:, :, 7:12].set(False)
  look = lambda slots, q, new: attention.look_back(q, slots, visible, bias, cap, tuple(new))
  wanted = look(wide, q, new.astype(jnp.float32))
  found = look((k, v), q.astype(dtype), new)
  assert found.dtype == dtype
  tolerance = 1e-5 if dtype == "float32" else 5e-2
  np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=tolerance)


@pytest.mark.parametrize("dtype, share", [("float32", 0.27), ("bfloat16", 0.54)])
def test_it_takes_a_quarter_or_a_half_of_the_memory(dtype, share):
  size = lambda kind: sum(leaf.nbytes for leaf in jax.tree.leaves(kept(kind, 64, dtype)[0][:2]))
  assert size("int8") <= share * size("")


def run(config, params, tokens, mask, more):
  """The logits of each of the further tokens, one after another; and of them side by side."""
  embed = lambda ids: decoder.embed(params, config, ids)
  prefill = jax.jit(decoder.prefill, static_argnums=(1, 4))
  _, state = prefill(params, config, embed(tokens), mask, more.shape[1])
  places = jnp.broadcast_to(jnp.arange(more.shape[1]), more.shape)
  among = jnp.broadcast_to(
    jnp.tril(jnp.ones((more.shape[1],) * 2, bool)), (3, *[more.shape[1]] * 2)
  )
  branch = jax.jit(decoder.branch, static_argnums=1)
  beside = branch(params, config, embed(more), state, places, among)
  step, rows = jax.jit(decoder.step, static_argnums=1), []
  for at in range(more.shape[1]):
    states, state = step(params, config, embed(more[:, at : at + 1]), state)
    rows.append(states)
  both = jnp.concatenate(rows, axis=1), beside
  return [np.asarray(decoder.logits(params, config, each)) for each in both]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_close_to_those_of_the_uncompressed_cache(dtype):
  params = decoder.random_params(CONFIG, jax.random.key(0), dtype)
  random = np.random.default_rng(0)
  tokens, more = random.integers(0, 61, (3, 11)), random.integers(0, 61, (3, ROOM))
  mask = (np.arange(11) >= np.array([[0], [4], [9]])).astype(np.int32)
  narrow, wide = (run(config, params, tokens, mask, more) for config in (NARROW, CONFIG))
  for found, wanted in zip(narrow, wide, strict=True):
    apart = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 0 < apart < 0.03
