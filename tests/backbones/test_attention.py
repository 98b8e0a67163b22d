"""Attention by itself: the gradient of a bias, and a few rows at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention

ROWS, LENGTH, HEADS, KEY_HEADS, SIZE = 6, 10, 4, 2, 6


def inputs(seed):
  """Queries, keys and values."""
  rng = np.random.default_rng(seed)
  make = lambda heads: rng.normal(size=(ROWS, LENGTH, heads, SIZE)).astype(np.float32)
  return make(HEADS), make(KEY_HEADS), make(KEY_HEADS)


def visible_to(ordered):
  """Of each row another key is hidden; `ordered` hides what comes later, too."""
  seen = np.tril(np.ones((ROWS, LENGTH, LENGTH), bool)) | (not ordered)
  seen[np.arange(ROWS), :, np.arange(1, ROWS + 1)] = False
  return seen


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 10, 10), (ROWS, 4, 1, 10)])
def test_the_gradient_to_a_bias_of_the_scores(ordered, shape, monkeypatch):
  monkeypatch.setattr(attention, "BLOCK", 4)
  (q, k, v), (weight, _, _), visible = inputs(0), inputs(1), visible_to(ordered)
  bias = np.random.default_rng(2).normal(size=shape).astype(np.float32)

  def plain(bias):
    keys, values = (jnp.repeat(a, 2, axis=2) for a in (k, v))
    scores = jnp.einsum("bthc,bshc->bhts", q, keys) / SIZE**0.5 + bias
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
    return (jnp.einsum("bhts,bshc->bthc", weights, values) * weight).sum()

  ours = jax.grad(lambda bias: (attention.attend(q, k, v, visible, bias, ordered) * weight).sum())
  np.testing.assert_allclose(ours(bias), jax.grad(plain)(bias), atol=1e-5)


@pytest.mark.parametrize("ordered, cap", [(False, None), (True, 2.0)])
@pytest.mark.parametrize("shape", [None, (1, 4, 10, 10), (ROWS, 4, 10, 10)])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_few_rows_at_a_time_give_the_same(ordered, cap, shape, at_once, monkeypatch):
  arguments, (weight, _, _) = inputs(0), inputs(1)
  if shape:
    arguments += (np.random.default_rng(2).normal(size=shape).astype(np.float32),)

  def attend(arguments):
    q, k, v, *bias = arguments
    bias = bias[0] if bias else None
    return attention.attend(q, k, v, visible_to(ordered), bias, ordered, cap)

  both = lambda: (
    jax.jit(attend)(arguments),
    jax.jit(jax.grad(lambda given: (attend(given) * weight).sum()))(arguments),
  )
  whole = both()
  asked = []
  monkeypatch.setattr(attention, "_at_once", lambda *of: asked.append(of) or at_once)
  for ours, theirs in zip(jax.tree.leaves(both()), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  assert set(asked) == {(ROWS, HEADS * LENGTH**2)}


def test_how_many_rows_fit_the_cache(monkeypatch):
  monkeypatch.setattr(attention.jax, "device_count", lambda: 1)
  monkeypatch.setattr(attention, "CACHED", 100)
  cases = {(6, 10): 6, (6, 33): 6, (6, 34): 2, (7, 40): 1, (12, 30): 3, (4, 1000): 1, (1, 1000): 1}
  assert {case: attention._at_once(*case) for case in cases} == cases
  monkeypatch.setattr(attention.jax, "device_count", lambda: 2)
  assert attention._at_once(4, 1000) == 4
