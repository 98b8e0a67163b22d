"""Quantised frozen weights: error, size, and the same results as with the dequantised matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder, loss, stack
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.linear import project, project_groups
from frozen_jax.backbones.quantized import (
  QUANTIZATION_KINDS,
  Quantized,
  dequantize,
  group_size,
  quantize,
  summed_axis,
)
from frozen_jax.core import paths
from frozen_jax.sharding import mesh as meshes
from frozen_jax.sharding import rules
from frozen_jax.sharding.checksum import checksum
from tests.backbones.dequantizing import dequantized

pytestmark = pytest.mark.program

CONFIG = DecoderConfig(
  vocab_size=96, width=72, layers=3, heads=9, kv_heads=3, head_dim=8, mlp_width=64, tied=True
)
ERROR = {"int8": 0.012, "int4": 0.08, "nf4": 0.10}  # root mean square, of normal numbers
BITS = {"int8": 8.5, "int4": 5.0, "nf4": 4.5}


def normal(shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


random_params = jax.jit(decoder.random_params, static_argnums=(0, 2))


@functools.cache
def both(config, kind, dtype="float32"):
  """Random weights of a decoder, quantised and dequantised."""
  leaves = paths.flatten(random_params(config, jax.random.key(0), jnp.dtype(dtype)))
  for path, leaf in leaves.items():
    if (axis := summed_axis(path)) is not None:
      leaves[path] = quantize(leaf, kind, axis, dtype)
  params = paths.unflatten(leaves)
  return params, dequantized(params)


def device_bytes(tree):
  """The size of these arrays on the device according to XLA."""
  compiled = jax.jit(lambda tree: 0, keep_unused=True).lower(tree).compile()
  return compiled.memory_analysis().argument_size_in_bytes


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("shape,axis", [((96, 512), -2), ((512, 96), -1), ((2, 3, 64, 256), -2)])
def test_numbers_stay_near_and_take_few_bits(kind, shape, axis):
  matrix = normal(shape)
  leaf = quantize(matrix, kind, axis, "bfloat16")
  assert leaf.shape == matrix.shape and leaf.dtype == jnp.bfloat16
  error = jnp.linalg.norm(dequantize(leaf).astype(jnp.float32) - matrix) / jnp.linalg.norm(matrix)
  assert error < ERROR[kind]
  assert device_bytes(leaf) <= BITS[kind] / 8 * matrix.size


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
def test_a_layer_quantised_on_its_own_equals_its_slice_of_the_stack(kind):
  matrices = normal((3, 64, 48))
  stack_of_all = quantize(matrices, kind, -2, "float32")
  layers = [quantize(matrix, kind, -2, "float32") for matrix in matrices]
  stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
  jax.tree.map(np.testing.assert_array_equal, stacked, stack_of_all)


def test_sixteen_evenly_spaced_numbers_a_group_are_exact():
  steps = jax.random.randint(jax.random.key(0), (4, 32, 8), 0, 16).at[:, 0].set(0).at[:, 1].set(15)
  scale, low = 0.25 * (1 + jnp.arange(8)), -jnp.arange(4.0)[:, None, None]
  matrix = (steps * scale + low).reshape(128, 8)
  np.testing.assert_array_equal(dequantize(quantize(matrix, "int4", 0, "float32")), matrix)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_groups_of_one_value(kind, value):
  matrix = jnp.full((64, 4), value)
  np.testing.assert_allclose(dequantize(quantize(matrix, kind, 0, "float32")), matrix, rtol=5e-3)


def test_groups_divide_any_axis():
  assert [group_size(size) for size in (576, 96, 48, 50, 7, 37)] == [32, 32, 24, 25, 7, 1]


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_their_gradients(kind, axis, dtype):
  kernel = quantize(normal((64, 96)), kind, axis, dtype)
  x, weight = normal((5, (64, 96)[axis]), 1), normal((5, (96, 64)[axis]), 2)
  run = lambda x, kernel: (project(x, kernel, axis) * weight).sum()
  ours, plain = (jax.jit(jax.value_and_grad(run))(x, k) for k in (kernel, dequantize(kernel)))
  np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], plain[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
def test_products_with_experts_and_their_gradients(kind):
  kernels = quantize(normal((3, 32, 24)), kind, -2, "float32")
  x, sizes, weight = normal((7, 32), 1), jnp.array([2, 0, 5]), normal((7, 24), 2)
  run = lambda x, kernels: (project_groups(x, kernels, sizes) * weight).sum()
  ours, plain = (jax.jit(jax.value_and_grad(run))(x, k) for k in (kernels, dequantize(kernels)))
  np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], plain[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("saved", [None, stack.SavedValues(())], ids=["saved", "recomputed"])
def test_gradients_reach_low_rank_parts_alongside_stacked_kernels(kind, saved):
  kernels = normal((3, 32, 32)) / 6
  quantised = quantize(kernels, kind, -2, "float32")
  parts = {"a": normal((3, 32, 2), 1) / 6, "b": normal((3, 2, 32), 2)}
  x = normal((4, 32), 3)

  def total(parts, x, kernels):
    def body(carry, kernel):
      x, at = carry
      a, b = parts["a"][at], parts["b"][at]
      return (jnp.tanh(project(x, kernel) + x @ a @ b), at + 1), None

    return (stack.scan(body, (x, 0), kernels, saved)[0][0] ** 2).sum()

  ours, plain = (
    jax.jit(jax.grad(total, argnums=(0, 1)))(parts, x, k)
    for k in (quantised, dequantize(quantised))
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, plain)
  assert all(jnp.abs(g).max() > 1e-3 for g in jax.tree.leaves(ours))


@functools.partial(jax.jit, static_argnums=1)
def states_of_all_kinds(params, config, tokens, mask):
  """The logits of a prefill, of a step and of a continuation; and the embeddings."""
  x = decoder.embed(params, config, tokens)
  states, cache = decoder.prefill(params, config, x, mask, 1)
  last, _ = decoder.step(params, config, x[:, -1:], cache)
  position_ids, attention_mask = (
    jnp.zeros((2, 2), jnp.int32),
    jnp.broadcast_to(jnp.eye(2) > 0, (2, 2, 2)),
  )
  after = decoder.hidden_after_cache(params, config, x[:, -2:], cache, position_ids, attention_mask)
  return [decoder.logits(params, config, s) for s in (states, last, after)], x


@functools.partial(jax.jit, static_argnums=2)
def value_and_gradient(x, params, config, tokens, mask):
  """The log-likelihood of the tokens, and its gradient to the embeddings."""

  def objective(x):
    states = decoder.hidden(params, config, x, mask, remat="full")
    return loss.target_log_likelihood(params, config, states, tokens)[0].sum()

  return jax.value_and_grad(objective)(x)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("tied,dtype", [(False, "float32"), (True, "bfloat16")])
def test_a_quantised_decoder_equals_the_dequantised_one(kind, tied, dtype):
  config = DecoderConfig(**(vars(CONFIG) | {"tied": tied}))
  tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, config.vocab_size)
  mask = jnp.ones((2, 7), jnp.int32).at[0, :3].set(0)

  quantised, plain = both(config, kind, dtype)
  near = lambda a, b: np.testing.assert_allclose(
    np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2e-4, atol=2e-4
  )
  (scores, x), (expected, x_plain) = (
    states_of_all_kinds(params, config, tokens, mask) for params in (quantised, plain)
  )
  assert x.dtype == x_plain.dtype
  jax.tree.map(near, (scores, x), (expected, x_plain))
  gradient, expected = (
    value_and_gradient(x, params, config, tokens, mask)[1] for params in (quantised, plain)
  )
  near(gradient, expected)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("vocab,tied", [(96, False), (101, True)])
def test_blocks_of_the_vocabulary(monkeypatch, kind, vocab, tied):
  monkeypatch.setattr(loss, "LOGITS_PER_BLOCK", 24)
  config = DecoderConfig(**(vars(CONFIG) | {"vocab_size": vocab, "tied": tied}))
  quantised, plain = both(config, kind)
  states = normal((2, 3, config.width), 1)
  ids = jax.random.randint(jax.random.key(2), (2, 3), 0, vocab)
  run = lambda params: jax.jit(
    jax.value_and_grad(lambda s: loss.target_log_likelihood(params, config, s, ids)[0].sum())
  )(states)
  for ours, theirs in zip(run(quantised), run(plain), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
def test_no_more_than_a_layer_is_dequantised_at_once(kind):
  sizes = {"layers": 24, "width": 256, "mlp_width": 1024, "heads": 4, "kv_heads": 4, "head_dim": 64}
  config = DecoderConfig(**(vars(CONFIG) | sizes))
  shapes = paths.flatten(decoder.param_shapes(config))
  params = paths.unflatten(
    {
      path: leaf
      if (axis := summed_axis(path)) is None
      else jax.eval_shape(lambda a, axis=axis: quantize(a, kind, axis, "float32"), leaf)
      for path, leaf in shapes.items()
    }
  )
  layer = sum(leaf.size * 4 for path, leaf in shapes.items() if "kernel" in path) / config.layers

  def total(x, params):
    return decoder.hidden(params, config, x).sum()

  x = jax.ShapeDtypeStruct((1, 4, config.width), jnp.float32)
  compiled = jax.jit(jax.grad(total)).lower(x, params).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * layer


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_eight_devices_equal_one():
  params, _ = both(CONFIG, "int4")
  grid = meshes.make_mesh(data=2, fsdp=2, tensor=2)
  sharded = jax.device_put(params, rules.shardings(params, decoder.PARAM_AXES, grid))
  codes = sharded["layers"]["mlp"]["up"]["kernel"].numbers.qvalue
  assert codes.addressable_shards[0].data.size == codes.size // 4
  assert checksum(sharded) == checksum(params)

  tokens = jax.random.randint(jax.random.key(1), (4, 10), 0, CONFIG.vocab_size)

  x = jax.jit(lambda p: decoder.embed(p, CONFIG, tokens))(params)
  mask = jnp.ones_like(tokens)
  value, gradient = value_and_gradient(x, params, CONFIG, tokens, mask)
  x8, tokens8, mask8 = jax.device_put((x, tokens, mask), rules.batch_sharding(grid))
  value8, gradient8 = value_and_gradient(x8, sharded, CONFIG, tokens8, mask8)
  np.testing.assert_allclose(value, value8, rtol=1e-5)
  np.testing.assert_allclose(gradient, gradient8, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
def test_the_checksum_depends_on_every_code_and_scale(kind):
  leaf = quantize(normal((64, 8)), kind, 0, "float32")
  flipped = [
    jax.tree.map(lambda a, b=b: a.at[3, 3].set(a[3, 3] + a.dtype.type(1)) if a is b else a, leaf)
    for b in jax.tree.leaves(leaf)
    if b.shape[0] > 3
  ]
  assert len({checksum(leaf), *map(checksum, flipped)}) == 1 + len(flipped) > 1


def test_a_quantised_leaf_is_a_pytree_with_its_dtype():
  leaf = quantize(normal((64, 8)), "nf4", 0, "bfloat16")
  again = jax.tree.unflatten(jax.tree.structure(leaf), jax.tree.leaves(leaf))
  assert isinstance(again, Quantized) and again.dtype == jnp.bfloat16
  np.testing.assert_array_equal(dequantize(again), dequantize(leaf))
