"""Random weights of sane scale, for tests and for checks of size and speed."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.core import paths


def fill(shapes: dict[str, Any], key: jax.Array, centre: float = 1.0) -> dict[str, Any]:
  """A tree of `jax.ShapeDtypeStruct` -> one of arrays; `centre`: what norms scale by."""
  flat = paths.flatten(shapes)
  leaves = {}
  for own, (path, leaf) in zip(jax.random.split(key, len(flat)), flat.items(), strict=True):
    noise = jax.random.normal(own, leaf.shape, jnp.float32)
    if path.endswith("scale"):
      value = centre + 0.1 * noise
    elif path.endswith("kernel"):
      value = noise / math.sqrt(leaf.shape[-2])
    else:
      value = 0.1 * noise
    leaves[path] = value.astype(leaf.dtype)
  return paths.unflatten(leaves)
