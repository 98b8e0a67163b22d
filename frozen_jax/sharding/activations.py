"""How activations are split over the mesh: constraints by logical axes.

Without them XLA decides. It may then keep the weights where they are and move the rows: each device
gets the whole batch and a part of every product, which costs more communication than computation. A
function finds the mesh by an array that it is given: under `jax.jit` each array knows the mesh that
its program is partitioned over.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from frozen_jax.core.paths import flatten, unflatten
from frozen_jax.sharding.rules import axes_of, spec_of

_OF_NONE = contextvars.ContextVar("of_no_platform", default=False)


@contextlib.contextmanager
def traced_for_any_platform() -> Iterator[None]:
  """A context in which programs are traced without what is of one platform: kernels, layouts."""
  token = _OF_NONE.set(True)
  try:
    yield
  finally:
    _OF_NONE.reset(token)


def constrain(x: jax.Array, *axes: str | None, like: jax.Array | None = None) -> jax.Array:
  """`jax.lax.with_sharding_constraint` by the logical axes of x, one for each dimension.

  A dimension with None is not split, nor is one that the mesh does not divide. Without a mesh, on
  one device, and within `jax.shard_map`, x is returned as it is. like: an array whose mesh is used,
  where x may know of none.
  """
  mesh = mesh_of(x if like is None else like)
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(x.shape, axes, mesh)))


def constrain_rows(tree: Any, like: jax.Array | None = None) -> Any:
  """`constrain` of arrays whose first axis is the rows of the batch; the others are not split."""
  split = lambda a: constrain(a, "batch", *(None,) * (a.ndim - 1), like=like)
  return jax.tree.map(split, tree)


def gather_weights(weights: Any, axes: Mapping[str, tuple[str | None, ...]]) -> Any:
  """A layer's weights, whole along what `fsdp` splits, for products with rows that stay where they
  are; `tensor` splits them still.

  weights: nested dicts, whose leaves may be small pytrees (quantised arrays). axes: the logical
  axes of the parameters by their paths within the layer, as in `rules.shardings`.
  """
  leaves = jax.tree.leaves(weights)
  if not leaves or mesh_of(leaves[0]) is None:
    return weights

  def gathered(path: str, leaf: Any) -> Any:
    gathered_axes = tuple(None if axis == "embed" else axis for axis in axes_of(path, axes))
    return jax.tree.map(lambda a: constrain(a, *gathered_axes), leaf)

  return unflatten({path: gathered(path, leaf) for path, leaf in flatten(weights).items()})


def mesh_of(x: Any) -> AbstractMesh | None:
  """The mesh of several devices that XLA partitions x over; None where there is none."""
  mesh = jax.typeof(x).sharding.mesh
  return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def platform_of(x: Any) -> str:
  """The platform that a program with x is compiled for: "cpu", "gpu", "tpu", or "any" of them.

  "any" within `traced_for_any_platform`. That of the mesh where x knows one, which may be of
  devices that this machine does not have; else that of JAX's default device.
  """
  if _OF_NONE.get():
    return "any"
  device = jax.typeof(x).sharding.mesh.abstract_device
  platform = jax.default_backend() if device is None else device.platform
  return "gpu" if platform in ("cuda", "rocm") else platform
