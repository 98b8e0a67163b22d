"""Gradients of the product with a trained kernel, for every case of its transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones.linear import project_trained

SHAPES = [(6,), (1, 6), (5, 6), (8, 6), (3, 5, 6), (3, 8, 6), (1, 7, 6), (2, 3, 4, 6)]


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_has_the_gradients_of_a_plain_one(shape, axis, dtype, atol):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype(np.float32)
  kernel = rng.normal(size=(6, 4) if axis == 0 else (4, 6)).astype(np.float32)
  weight = rng.normal(size=(*shape[:-1], 4)).astype(np.float32)
  value_and_grads = lambda product: jax.value_and_grad(
    lambda x, kernel: (product(x, kernel) * weight).sum(), (0, 1)
  )
  plain = value_and_grads(lambda x, kernel: x @ (kernel if axis == 0 else kernel.T))
  ours = value_and_grads(lambda x, kernel: project_trained(x, kernel, axis))
  expected, actual = plain(x, kernel), jax.jit(ours)(x, kernel.astype(dtype))
  assert actual[1][0].dtype == jnp.float32 and actual[1][1].dtype == jnp.dtype(dtype)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.float32(a), b, atol=atol * np.abs(b).max())
