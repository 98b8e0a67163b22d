"""Batches that every host holds as a whole, put on the mesh; and the sharding of results."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frozen_jax.sharding.rules import MESH_AXES_OF, batch_sharding, replicated, row_groups

ShardBatch = Callable[[Mapping[str, Any]], Mapping[str, jax.Array]]  # `shard_batch` on a mesh


def with_sharding_constraint(x: jax.Array, sharding: jax.sharding.Sharding | None) -> jax.Array:
  """`jax.lax.with_sharding_constraint`, where None leaves the sharding to XLA."""
  return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def rows_sharding(like: jax.sharding.Sharding, rows: int) -> NamedSharding | None:
  """The sharding of an array with this many rows that is otherwise split as `like`.

  The rows are its first axis; they are split over the mesh where it divides them. None: of an array
  on one device.
  """
  if not isinstance(like, NamedSharding) or like.mesh.size == 1:
    return None
  mesh = like.mesh
  axes = MESH_AXES_OF["batch"] if rows % row_groups(mesh) == 0 else None
  return NamedSharding(mesh, PartitionSpec(axes, *like.spec[1:]))


def shard_batch(batch: Mapping[str, Any], mesh: Mesh | None) -> dict[str, jax.Array]:
  """Puts arrays [B, ...] on the mesh (None: on the default device).

  The rows are split over the mesh where it divides B, else every device gets the whole batch.
  """
  if mesh is None:
    return {name: jnp.asarray(value) for name, value in batch.items()}
  rows = len(next(iter(batch.values())))
  sharding = replicated(mesh) if rows % row_groups(mesh) else batch_sharding(mesh)
  return {name: jax.device_put(value, sharding) for name, value in batch.items()}
