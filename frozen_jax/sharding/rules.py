"""From the logical names of a parameter's axes to the mesh: the one table, and its appliers.

A model states for each parameter path its logical axes (`{regex: ("layers", "embed", "heads")}`);
which mesh axis a logical axis lies on is decided here alone. A path that no pattern or two
patterns match is an error, so that a new parameter can never be left unsharded by oversight.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frozen_jax.core.errors import UserError
from frozen_jax.core.paths import leaves_by_path, unflatten

MeshAxes = str | tuple[str, ...] | None

MESH_AXES_OF: dict[str, MeshAxes] = {
  "batch": ("data", "fsdp"),
  "embed": "fsdp",
  "heads": "tensor",
  "kv": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "layers": None,
  "experts": None,
}


def axes_of(path: str, param_axes: Mapping[str, tuple[str | None, ...]]) -> tuple[str | None, ...]:
  """The logical axes of the parameter at `path` by the one pattern that matches all of it.

  Raises:
    ValueError: no pattern, or more than one, matches (a fault of the model's table).
  """
  found = [pattern for pattern in param_axes if re.fullmatch(pattern, path)]
  if not found:
    raise ValueError(f"no sharding rule matches the parameter {path!r}; add it to PARAM_AXES")
  if len(found) > 1:
    raise ValueError(f"{len(found)} sharding rules match the parameter {path!r}: {found}")
  return param_axes[found[0]]


def spec_of(
  shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, path: str = ""
) -> PartitionSpec:
  """The partition of an array of this shape; a dimension the mesh does not divide is replicated.

  Raises:
    ValueError: as many axes as dimensions are needed, and each must stand in `MESH_AXES_OF`.
  """
  if len(axes) != len(shape):
    raise ValueError(f"parameter {path!r} has shape {shape} but the axes {axes}")
  parts: list[MeshAxes] = []
  for size, axis in zip(shape, axes, strict=True):
    if axis is not None and axis not in MESH_AXES_OF:
      raise ValueError(f"parameter {path!r}: unknown logical axis {axis!r}")
    on = None if axis is None else MESH_AXES_OF[axis]
    parts.append(on if on is not None and size % _size(mesh, on) == 0 else None)
  return PartitionSpec(*parts)


def shardings(
  shapes: Mapping[str, Any], param_axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, Any]:
  """The tree of `NamedSharding`s for a tree of nested dicts of anything with a `.shape`.

  A leaf that is itself a small pytree (a quantised array with its scales) gets a sharding for each
  of its arrays, by the axes of the leaf's path.

  Raises:
    ValueError: a path that no rule or two rules match, or axes that do not fit the shape.
  """

  def of(path: str, leaf: Any) -> Any:
    axes = axes_of(path, param_axes)
    return jax.tree.map(lambda a: NamedSharding(mesh, spec_of(a.shape, axes, mesh, path)), leaf)

  return unflatten({path: of(path, leaf) for path, leaf in leaves_by_path(shapes)})


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(MESH_AXES_OF["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device: what trained trees and scalars have."""
  return NamedSharding(mesh, PartitionSpec())


def row_groups(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return _size(mesh, MESH_AXES_OF["batch"])


def check_batch_size(rows: int, mesh: Mesh, accumulate: int = 1, name: str = "batch size") -> None:
  """Checks that `accumulate` microbatches of the batch each split evenly over the mesh.

  Raises:
    UserError: they do not; the message says which sizes would do.
  """
  groups = row_groups(mesh)
  parts = groups * accumulate
  if rows > 0 and rows % parts == 0:
    return
  above = max(-(-rows // parts), 1) * parts
  below = rows // parts * parts
  sizes = f"{below} or {above}" if below > 0 else f"{above}"
  into = f"{groups} device groups (mesh.data x mesh.fsdp)"
  if accumulate > 1:
    into = f"{accumulate} microbatches over {into}"
  raise UserError(f"{name} {rows} does not split into {into}; {sizes} would do")


def _size(mesh: Mesh, axes: MeshAxes) -> int:
  size = 1
  for axis in (axes,) if isinstance(axes, str) else axes or ():
    size *= mesh.shape[axis]
  return size
