"""Attention: the gradient of a bias, and chunks of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import batch_sharding

pytestmark = pytest.mark.program

ROWS, LENGTH, HEADS, KEY_HEADS, SIZE = 6, 10, 4, 2, 6


def inputs(seed):
  """Queries, keys and values."""
  rng = np.random.default_rng(seed)
  normal = lambda heads: jnp.float32(rng.normal(size=(ROWS, LENGTH, heads, SIZE)))
  return normal(HEADS), normal(KEY_HEADS), normal(KEY_HEADS)


def mask_of(is_causal):
  """A mask in which each row lacks another key; with `is_causal` later keys are masked, too."""
  mask = np.tril(np.ones((ROWS, LENGTH, LENGTH), bool)) | (not is_causal)
  mask[np.arange(ROWS), :, np.arange(1, ROWS + 1)] = False
  return jnp.asarray(mask)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 10, 10), (ROWS, 4, 1, 10)])
def test_the_gradient_to_a_bias_of_the_scores(is_causal, shape, monkeypatch):
  monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
  (q, k, v), (weight, _, _), mask = inputs(0), inputs(1), mask_of(is_causal)
  bias = jnp.float32(np.random.default_rng(2).normal(size=shape))

  def plain(bias):
    keys, values = (jnp.repeat(a, 2, axis=2) for a in (k, v))
    scores = jnp.einsum("bthc,bshc->bhts", q, keys) / SIZE**0.5 + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
    return (jnp.einsum("bhts,bshc->bthc", weights, values) * weight).sum()

  ours = jax.grad(lambda bias: (attention.attend(q, k, v, mask, bias, is_causal) * weight).sum())
  np.testing.assert_allclose(ours(bias), jax.grad(plain)(bias), atol=1e-5)


@pytest.mark.parametrize("is_causal, soft_cap", [(False, None), (True, 2.0)])
@pytest.mark.parametrize("shape", [None, (1, 4, 10, 10), (ROWS, 4, 10, 10)])
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_of_rows_give_the_same(is_causal, soft_cap, shape, chunk_size, monkeypatch):
  arguments, (weight, _, _) = inputs(0), inputs(1)
  if shape:
    arguments += (jnp.float32(np.random.default_rng(2).normal(size=shape)),)

  def attend(arguments):
    q, k, v, *bias = arguments
    bias = bias[0] if bias else None
    return attention.attend(q, k, v, mask_of(is_causal), bias, is_causal, soft_cap)

  output_and_gradient = lambda: (
    jax.jit(attend)(arguments),
    jax.jit(jax.grad(lambda arguments: (attend(arguments) * weight).sum()))(arguments),
  )
  expected = output_and_gradient()
  calls = []
  monkeypatch.setattr(attention, "_chunk_size", lambda *sizes: calls.append(sizes) or chunk_size)
  actual = output_and_gradient()
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert set(calls) == {(ROWS, HEADS * LENGTH**2)}


def test_chunks_of_rows_fit_the_cache(monkeypatch):
  monkeypatch.setattr(attention, "SCORES_IN_CPU_CACHE", 100)
  cases = {(6, 10): 6, (6, 33): 6, (6, 34): 2, (7, 40): 1, (12, 30): 3, (4, 1000): 1, (1, 1000): 1}
  assert {case: attention._chunk_size(*case) for case in cases} == cases


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_sharded_rows_are_processed_at_once(monkeypatch):
  monkeypatch.setattr(attention, "_chunk_size", lambda *_: pytest.fail("rows in chunks"))
  arrays = [jnp.ones((8, LENGTH, HEADS, 4))] * 3
  mask = jnp.ones((8, LENGTH, LENGTH), bool)
  rows = [jax.device_put(a, batch_sharding(make_mesh(data=8))) for a in (*arrays, mask)]
  jax.jit(lambda *a: attention.attend(*a))(*rows)
