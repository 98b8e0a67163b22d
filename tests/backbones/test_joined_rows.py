"""Rows and the prompt that they share as one row of positions, with and without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones.joined_rows import joined_rows, real_positions

PROMPT, ROWS = jnp.arange(6.0).reshape(1, 3, 2), 10 + jnp.arange(16.0).reshape(2, 4, 2)
MASK = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], np.int32)
REAL = [0, 1, 5, 6, 7]


def test_join_and_split_are_inverse():
  layout = joined_rows(3, MASK, None)
  joined = layout.join(PROMPT, ROWS)
  assert joined.shape == (1, 11, 2)
  for found, expected in zip(layout.split(joined), (PROMPT, ROWS), strict=True):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("prompt", [PROMPT, None])
@pytest.mark.parametrize("size", [5, 7])
def test_padding_is_left_out_and_comes_back_as_zeros(prompt, size):
  num_prompt = 0 if prompt is None else 3
  layout = joined_rows(num_prompt, MASK, real_positions(MASK, size))
  joined = layout.join(prompt, ROWS)
  assert joined.shape == (1, num_prompt + size, 2)
  np.testing.assert_array_equal(joined[0, num_prompt:][:5], ROWS.reshape(8, 2)[np.array(REAL)])
  assert not joined[0, num_prompt + 5 :].any(), "more places than real positions are zeros"
  found_prompt, found = layout.split(joined)
  np.testing.assert_array_equal(found, ROWS * MASK[..., None])
  assert (found_prompt is None) == (prompt is None)
  if prompt is not None:
    np.testing.assert_array_equal(found_prompt, prompt)


def test_the_derivative_is_that_of_taking_the_real_positions():
  layout = joined_rows(3, MASK, real_positions(MASK, 6))
  weights = jnp.arange(1.0, 19.0).reshape(1, 9, 2)
  joined = lambda rows: (layout.join(PROMPT, rows) * weights).sum()
  expected = np.zeros((8, 2), np.float32)
  expected[np.array(REAL)] = weights[0, 3:8]
  np.testing.assert_array_equal(jax.grad(joined)(ROWS), expected.reshape(2, 4, 2))
  split = lambda x: (layout.split(x)[1] * (1 + ROWS)).sum()
  gradient = jax.grad(split)(weights)
  np.testing.assert_array_equal(gradient[0, 3:8], 1 + ROWS.reshape(8, 2)[np.array(REAL)])
  assert not gradient[0, :3].any() and not gradient[0, 8:].any()


def test_the_real_positions_of_a_mask_and_then_none():
  assert real_positions(MASK, 7).tolist() == [*REAL, 8, 8]
