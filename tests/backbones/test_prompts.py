"""A prompt before the text: joined to each row, or shared by the rows, with equal results."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention, decoder, prompts
from frozen_jax.backbones.config import DecoderConfig, Rope
from frozen_jax.core.flop_count import flops
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.settings import PromptSettings

LLAMA = DecoderConfig(
  vocab_size=50, width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=48
)
LAYER_NORM = {"norm": "layer", "qkv_bias": True, "out_bias": True, "mlp_bias": True}
LONG = Rope(kind="longrope", original_context=12, short_factor=(1.0,) * 8, long_factor=(3.0,) * 8)
CASES = {
  "rotary": {},
  "windows": {"kinds": ("sliding", "full", "sliding"), "window": 5, "local_rope": Rope(500.0)},
  "capped": {"score_cap": 3.0, "qk_norm": True, "norm_after": True},
  "alibi": {"positions": "alibi", "embed_norm": True, **LAYER_NORM},
  "learned": {"positions": "learned", "position_offset": 2, "gated": False, **LAYER_NORM},
  "parallel": {"parallel": True, "shared_norm": True, "rotary_dim": 8, "interleaved": True},
  "experts": {"experts": 3, "experts_per_token": 2},
  "length": {"rope": LONG},  # keys of a prompt depend on the length of its row
}
ROWS, LENGTH, PROMPT, NEW = 3, 9, 4, 2


def config_of(case):
  return dataclasses.replace(LLAMA, **CASES[case])


def params_of(config):
  return decoder.random_params(config, jax.random.key(0))


def texts(width, side):
  """Embeddings of a prompt and of texts, and the texts' mask."""
  x = jax.random.normal(jax.random.key(3), (ROWS, LENGTH, width))
  prompt = jax.random.normal(jax.random.key(4), (PROMPT, width))
  lengths, places = np.array([LENGTH, 6, 1])[:, None], np.arange(LENGTH)
  real = places < lengths if side == "right" else places >= LENGTH - lengths
  return prompt, x, real.astype(np.int32)


def as_it_is(prompt):
  return prompt


def for_each_row(prompt):
  return jnp.broadcast_to(prompt, (ROWS, *prompt.shape))


@pytest.mark.parametrize("case", CASES)
def test_rows_that_share_a_prompt_equal_rows_with_their_own(case):
  """States, and the gradients of the prompt and of the texts."""
  config = config_of(case)
  params = params_of(config)

  def total(prompt, x, mask, weights, of_rows):
    states = decoder.hidden(params, config, x, mask, prompt=of_rows(prompt))
    return (states * weights).sum(), states

  run = jax.jit(jax.grad(total, (0, 1), has_aux=True), static_argnums=4)
  for side in ("left", "right"):
    prompt, x, mask = texts(config.width, side)
    weights = jax.random.normal(jax.random.key(5), x.shape) * mask[..., None]
    gradients, states = run(prompt, x, mask, weights, as_it_is)
    expected_gradients, expected = run(prompt, x, mask, weights, for_each_row)
    np.testing.assert_allclose(states[mask > 0], expected[mask > 0], atol=2e-5, err_msg=side)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
      np.testing.assert_allclose(found, wanted, atol=2e-5 * jnp.abs(wanted).max(), err_msg=side)


def test_a_prompt_may_stand_after_a_prefix():
  config = config_of("rotary")
  params = params_of(config)
  prompt, x, mask = texts(config.width, "left")
  shape = (config.layers, 2, config.kv_heads, config.head_dim)
  peft = {"prefix": {name: jnp.full(shape, size) for name, size in (("k", 0.2), ("v", 3.0))}}
  run = jax.jit(
    lambda prompt, peft: decoder.hidden(params, config, x, mask, prompt=prompt, peft=peft)
  )
  states, expected = run(prompt, peft), run(for_each_row(prompt), peft)
  np.testing.assert_allclose(states[mask > 0], expected[mask > 0], atol=2e-5)
  assert np.abs(states - run(prompt, None))[mask > 0].max() > 1e-2


@pytest.mark.parametrize("case", ["rotary", "windows", "alibi", "learned", "length"])
def test_decoding_goes_on_after_a_shared_prompt(case):
  config = config_of(case)
  params = params_of(config)
  prompt, x, mask = texts(config.width, "left")
  new = jax.random.normal(jax.random.key(6), (NEW, ROWS, 1, config.width))

  def run(of_rows):
    states, cache = decoder.prefill(params, config, x, mask, NEW, prompt=of_rows(prompt))
    found = [states[:, -1:]]
    for token in new:
      states, cache = decoder.step(params, config, token, cache)
      found.append(states)
    return jnp.concatenate(found, axis=1), cache.mask

  states, cache_mask = jax.jit(lambda: run(lambda prompt: prompt))()
  expected, expected_mask = jax.jit(lambda: run(for_each_row))()
  np.testing.assert_allclose(states, expected, atol=2e-5)
  np.testing.assert_array_equal(cache_mask, expected_mask)
  assert cache_mask.shape == (ROWS, PROMPT + LENGTH + NEW)


def test_a_long_text_after_a_prompt_is_read_in_blocks(monkeypatch):
  config = config_of("windows")
  params = params_of(config)
  prompt, x, mask = texts(config.width, "left")

  def run(block):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    total = lambda prompt: (decoder.hidden(params, config, x, mask, prompt=prompt) ** 2).sum()
    return jax.jit(jax.value_and_grad(total))(prompt)

  (whole, gradient), (value, gradient_of_blocks) = run(128), run(4)
  np.testing.assert_allclose(value, whole, rtol=1e-5)
  np.testing.assert_allclose(gradient_of_blocks, gradient, rtol=1e-4, atol=1e-4)


def test_a_training_step_computes_a_shared_prompt_once():
  """The products of P + B * T positions, where each row's own would be of B * (P + T)."""
  config = dataclasses.replace(LLAMA, vocab_size=8)
  method = PromptTuning(config, PromptSettings())
  length, rows, num_prompt = 8, 16, 24
  batch = {
    "tokens": np.ones((rows, length), np.int32),
    "mask": np.ones((rows, length), np.int32),
    "target_positions": np.zeros((rows, 1), np.int32),
    "target_ids": np.zeros((rows, 1), np.int32),
    "target_mask": np.ones((rows, 1), np.int32),
  }
  vectors = jnp.zeros((num_prompt, config.width))
  lm = params_of(config)

  def loss(vectors):
    return method.loss({"prompt": {"vectors": vectors}}, {"lm": lm}, batch, None)[0]

  own = lambda x: decoder.hidden(lm, config, x, prompt=jnp.zeros((rows, *vectors.shape))).sum()
  shared = flops(jax.grad(loss), vectors)
  assert shared < 0.45 * flops(jax.grad(own), jnp.zeros((rows, length, config.width)))


@pytest.mark.parametrize(
  "case, shape, rows, shared",
  [
    ("rotary", (4, 32), 3, True),
    ("rotary", (4, 32), 1, False),
    ("rotary", (3, 4, 32), 3, False),
    ("length", (4, 32), 3, False),
  ],
)
def test_which_prompts_are_shared(case, shape, rows, shared):
  config = config_of(case)
  assert prompts.can_share(config, jnp.zeros(shape), rows, jnp.zeros(1)) == shared


def test_a_prompt_is_not_shared_where_a_mesh_splits_the_rows():
  from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

  mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
  split = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
  found = []
  trace = lambda weight: found.append(prompts.can_share(LLAMA, jnp.zeros((4, 32)), 3, weight))
  jax.eval_shape(trace, split)
  assert found == [False]


def test_the_prompt_stands_before_the_text_in_the_text_s_dtype():
  prompt, text = 0.5 * jnp.ones((3, 2)), jnp.zeros((4, 5, 2), jnp.bfloat16)
  mask = jnp.asarray([[0, 0, 1, 1, 1]] * 4)
  joined, joined_mask = prompts.prepend(prompt, text, mask)
  assert joined.shape == (4, 8, 2) and joined.dtype == jnp.bfloat16
  assert (joined[:, :3] == 0.5).all() and (joined[:, 3:] == 0).all()
  assert joined_mask.tolist() == [[1, 1, 1, 0, 0, 1, 1, 1]] * 4


def test_rows_may_have_prompts_of_their_own():
  own = jnp.arange(8.0).reshape(2, 2, 2)
  joined, _ = prompts.prepend(own, jnp.zeros((2, 1, 2)), jnp.ones((2, 1), jnp.int32))
  np.testing.assert_array_equal(joined[:, :2], own)


def test_without_a_prompt_nothing_changes():
  text, mask = jnp.ones((1, 2, 2)), jnp.ones((1, 2), jnp.int32)
  assert prompts.prepend(None, text, mask) == (text, mask)
