"""Random weights of a plausible scale, for tests and for checks of size and speed."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.core import paths


def fill(shapes: dict[str, Any], key: jax.Array, norm_scale: float = 1.0) -> dict[str, Any]:
  """A tree of `jax.ShapeDtypeStruct` -> one of arrays; `norm_scale`: the mean scale of norms."""
  flat = paths.flatten(shapes)
  leaves = {}
  keys = jax.random.split(key, len(flat))
  for leaf_key, (path, shape) in zip(keys, flat.items(), strict=True):
    noise = jax.random.normal(leaf_key, shape.shape, jnp.float32)
    if path.endswith("scale"):
      value = norm_scale + 0.1 * noise
    elif path.endswith("kernel"):
      value = noise / math.sqrt(shape.shape[-2])
    else:
      value = 0.1 * noise
    leaves[path] = value.astype(shape.dtype)
  return paths.unflatten(leaves)
