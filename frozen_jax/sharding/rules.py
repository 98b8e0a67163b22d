"""Logical axis rules: from the logical axes of a parameter or an activation to those of the mesh.

A model lists the logical axes of each parameter path (`{regex: ("layers", "embed", "heads")}`);
`MESH_AXES_OF` maps logical axes to mesh axes. Each path must match exactly one pattern, so that a
new parameter is never left unsharded by oversight. Activations are constrained by the same table
(`sharding.activations`); of them the length and the features are not split.
"""

import re
from collections.abc import Mapping
from typing import Any, overload

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frozen_jax.core.errors import UserError
from frozen_jax.core.paths import flatten, unflatten

MeshAxes = str | tuple[str, ...] | None

MESH_AXES_OF: dict[str, MeshAxes] = {
  "batch": ("data", "fsdp"),
  "embed": "fsdp",
  "heads": "tensor",
  "kv": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "layers": None,
  "data_batch": "data",  # rows, where `fsdp` splits another axis of the array
  "fsdp_vocab": ("fsdp", "tensor"),
  "experts": None,
}


def axes_of(path: str, param_axes: Mapping[str, tuple[str | None, ...]]) -> tuple[str | None, ...]:
  """The logical axes of the parameter at `path`, by the one pattern that matches it in full.

  Raises:
    ValueError: no pattern, or more than one, matches (a bug in the model's table).
  """
  matches = [pattern for pattern in param_axes if re.fullmatch(pattern, path)]
  if not matches:
    raise ValueError(f"no sharding rule matches the parameter {path!r}; add it to PARAM_AXES")
  if len(matches) > 1:
    raise ValueError(f"{len(matches)} sharding rules match the parameter {path!r}: {matches}")
  return param_axes[matches[0]]


def spec_of(
  shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, path: str = ""
) -> PartitionSpec:
  """The partition of an array of this shape; dimensions that the mesh does not divide are whole.

  Raises:
    ValueError: not one axis per dimension, or an axis that `MESH_AXES_OF` does not have.
  """
  if len(axes) != len(shape):
    raise ValueError(f"parameter {path!r} has shape {shape} but the axes {axes}")
  parts: list[MeshAxes] = []
  for size, axis in zip(shape, axes, strict=True):
    if axis is not None and axis not in MESH_AXES_OF:
      raise ValueError(f"parameter {path!r}: unknown logical axis {axis!r}")
    mesh_axes = None if axis is None else MESH_AXES_OF[axis]
    parts.append(mesh_axes if size % _num_devices(mesh, mesh_axes) == 0 else None)
  return PartitionSpec(*parts)


def shardings(
  shapes: Mapping[str, Any], param_axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, Any]:
  """The tree of `NamedSharding`s for nested dicts of leaves with a `.shape`.

  A leaf may itself be a small pytree (a quantised array with its scales): each of its arrays gets a
  sharding, by the logical axes of the leaf's path.

  Raises:
    ValueError: a path that no rule or two rules match, or axes that do not fit the shape.
  """

  def leaf_sharding(path: str, leaf: Any) -> Any:
    axes = axes_of(path, param_axes)
    return jax.tree.map(lambda a: NamedSharding(mesh, spec_of(a.shape, axes, mesh, path)), leaf)

  return unflatten({path: leaf_sharding(path, leaf) for path, leaf in flatten(shapes).items()})


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows split over `data` and `fsdp`; other dimensions are not split."""
  return NamedSharding(mesh, PartitionSpec(MESH_AXES_OF["batch"]))


@overload
def replicated(mesh: Mesh) -> NamedSharding: ...


@overload
def replicated(mesh: None) -> None: ...


def replicated(mesh: Mesh | None) -> NamedSharding | None:
  """The whole array on every device of the mesh, as for trained trees; None without a mesh."""
  return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def row_groups(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return _num_devices(mesh, MESH_AXES_OF["batch"])


def check_batch_size(rows: int, mesh: Mesh, accumulate: int = 1, name: str = "batch size") -> None:
  """Checks that `accumulate` microbatches of the batch each split evenly over the mesh.

  Raises:
    UserError: they do not; the message names sizes that do.
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


def _num_devices(mesh: Mesh, axes: MeshAxes) -> int:
  """How many devices an array is split over along these axes."""
  size = 1
  for axis in (axes,) if isinstance(axes, str) else axes or ():
    size *= mesh.shape[axis]
  return size
