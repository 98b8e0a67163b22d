"""Putting a whole batch, the same on every host, onto the mesh (evaluation and generation)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from frozen_jax.sharding.rules import batch_sharding, replicated, row_groups


def make_place(mesh: Mesh | None) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
  """A function that puts arrays [B, ...] on the mesh: rows split where they divide, else whole."""

  def place(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    if mesh is None:
      return {name: jnp.asarray(value) for name, value in batch.items()}
    rows = len(next(iter(batch.values())))
    sharding = replicated(mesh) if rows % row_groups(mesh) else batch_sharding(mesh)
    return {name: jax.device_put(value, sharding) for name, value in batch.items()}

  return place
