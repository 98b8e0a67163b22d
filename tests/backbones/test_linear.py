"""Gradients of the product with a trained kernel, in every shape that its transpose is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones.linear import product

SHAPES = [(6,), (1, 6), (5, 6), (8, 6), (3, 5, 6), (3, 8, 6), (1, 7, 6), (2, 3, 4, 6)]


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_has_the_gradients_of_a_plain_one(shape, axis, dtype, atol):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype(np.float32)
  kernel = rng.normal(size=(6, 4) if axis == 0 else (4, 6)).astype(np.float32)
  weight = rng.normal(size=(*shape[:-1], 4)).astype(np.float32)
  both = lambda product: jax.value_and_grad(
    lambda x, kernel: (product(x, kernel) * weight).sum(), (0, 1)
  )
  expected = both(lambda x, kernel: x @ (kernel if axis == 0 else kernel.T))(x, kernel)
  found = jax.jit(both(lambda x, kernel: product(x, kernel, axis)))(x, kernel.astype(dtype))
  assert found[1][0].dtype == jnp.float32 and found[1][1].dtype == jnp.dtype(dtype)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.float32(ours), theirs, atol=atol * np.abs(theirs).max())
