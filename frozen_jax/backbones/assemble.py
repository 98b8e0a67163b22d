"""Stored tensors -> the parameter tree: checks that nothing is missing or left over, then places.

Both formats come in as `Stored`; what they share is here. A leaf that is a stack over the layers
is put together in its final dtype, one leaf at a time, so that no second copy of the model exists.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from frozen_jax.backbones.families.table import Family, Format, Source
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.sharding import rules

Index = tuple[slice, ...]


class Stored(Protocol):
  """The tensors of a model as its file holds them.

  where: the file or folder, for messages. form: which names it uses. sliced: reading a part
  touches only the bytes of that part. shapes: name -> shape, row-major.
  """

  where: str
  form: Format
  sliced: bool
  shapes: Mapping[str, tuple[int, ...]]

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor as floating point numbers."""
    ...

  def identity(self, name: str) -> tuple[str, np.ndarray]:
    """The name of the stored type, and the stored bytes (for the fingerprint)."""
    ...


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the tree: the tensors that it is made of, and how.

  stack: the axes that count tensors, (L,) or (L, E) or (); names: one for each, row-major. shape:
  of the whole array. source: how a tensor becomes its part of the array. piece: where a tensor
  holds more than this array, its groups, the width of a group, and the start and width of the
  piece in each group.
  """

  path: str
  names: tuple[str, ...]
  stack: tuple[int, ...]
  shape: tuple[int, ...]
  source: Source
  piece: tuple[int, int, int, int] | None

  @property
  def own_shape(self) -> tuple[int, ...]:
    """The shape of what one tensor contributes."""
    return self.shape[len(self.stack) :]

  @property
  def out_axis(self) -> int:
    """The axis of the stored tensor that holds a product's outputs."""
    return 0 if self.source.transpose else len(self.own_shape) - 1

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape that each of the stored tensors must have."""
    shape = list(self.own_shape[::-1] if self.source.transpose else self.own_shape)
    if self.piece:
      shape[self.out_axis] = self.piece[0] * self.piece[1]
    return tuple(shape)


def plan(config: Any, family: Family, form: Format) -> list[Leaf]:
  """The arrays of the tree and the names of the tensors that make them.

  Raises:
    UserError: the format has no name for an array that the config asks for.
  """
  keys = {key.path: key for key in family.keys}
  shapes = paths.flatten(family.network.param_shapes(config))
  nameless = [p for p in shapes if p not in keys or getattr(keys[p], form) is None]
  if nameless:
    raise UserError(
      f"a model of type {family.hf_name!r} with {_some(nameless)} has no names for these in "
      f"{form} files; its settings do not fit its family"
    )
  return [
    _leaf(path, leaf.shape, getattr(keys[path], form), config) for path, leaf in shapes.items()
  ]


def _leaf(path: str, shape: tuple[int, ...], source: Source, config: Any) -> Leaf:
  counts = [word for word in ("layer", "expert") if f"{{{word}}}" in source.name]
  stack = shape[: len(counts)]
  places = itertools.product(*(range(source.first, source.first + count) for count in stack))
  names = tuple(source.name.format(**dict(zip(counts, at, strict=True))) for at in places)
  piece = None
  if source.part:
    groups, sizes = source.part.layout(config)
    piece = (groups, sum(sizes), sum(sizes[: source.part.index]), sizes[source.part.index])
  return Leaf(path, names, stack, shape, source, piece)


def check(leaves: Sequence[Leaf], stored: Stored, derived: Sequence[str]) -> None:
  """Compares the stored tensors with the plan.

  Raises:
    UserError: tensors are missing, left over or of another shape; one message lists them all.
  """
  expected = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
  missing = [name for name in expected if name not in stored.shapes]
  extra = [
    name
    for name in stored.shapes
    if name not in expected and not any(re.fullmatch(d, name) for d in derived)
  ]
  wrong = [
    f"{name} {list(stored.shapes[name])} instead of {list(shape)}"
    for name, shape in expected.items()
    if name in stored.shapes and tuple(stored.shapes[name]) != shape
  ]
  kinds = (("missing", missing), ("not known", extra), ("of another shape", wrong))
  faults = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
  if faults:
    raise UserError(
      f"the tensors in {stored.where} do not make this model ({'; '.join(faults)}); the file is "
      "damaged, incomplete or of another model: get it again"
    )


def build(
  leaves: Sequence[Leaf],
  stored: Stored,
  dtype: np.dtype,
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """Reads every leaf in `dtype` onto the default device (mesh None) or onto its shards.

  `axes` names the logical axes of each parameter (see `sharding.rules`).
  """
  shapes = paths.unflatten({leaf.path: jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf in leaves})
  placed = mesh and paths.flatten(rules.shardings(shapes, axes, mesh))
  tree = {}
  total = sum(len(leaf.names) for leaf in leaves)
  # The bar shows itself only when loading takes longer than a moment.
  with tqdm(total=total, desc="load", unit="tensor", disable=not progress, delay=2) as bar:
    for leaf in leaves:
      if placed:
        tree[leaf.path] = _onto_shards(leaf, stored, dtype, placed[leaf.path], bar.update)
      else:
        tree[leaf.path] = jax.device_put(_read(leaf, stored, dtype, (slice(None),), bar.update))
      jax.block_until_ready(tree[leaf.path])
  return paths.unflatten(tree)


def _onto_shards(
  leaf: Leaf, stored: Stored, dtype: np.dtype, sharding: Any, tick: Callable[[int], Any]
) -> jax.Array:
  """Each process reads what its own devices hold; a part that several devices hold, once."""
  whole = None if stored.sliced else _read(leaf, stored, dtype, (slice(None),), lambda n: None)
  parts: dict[tuple[Any, ...], np.ndarray] = {}

  def part(index: Index) -> np.ndarray:
    if whole is not None:
      return whole[index]
    bounds = tuple((i.start, i.stop) for i in index)
    if bounds not in parts:
      parts[bounds] = _read(leaf, stored, dtype, index, lambda n: None)
    return parts[bounds]

  array = jax.make_array_from_callback(leaf.shape, sharding, part)
  tick(len(leaf.names))
  return array


def _read(
  leaf: Leaf, stored: Stored, dtype: np.dtype, index: Index, tick: Callable[[int], Any]
) -> np.ndarray:
  """The part `index` of a leaf, in its final dtype."""
  whole = (slice(None),) * (len(leaf.shape) - len(index))
  bounds = [i.indices(n) for i, n in zip((*index, *whole), leaf.shape, strict=True)]
  part = np.empty([stop - start for start, stop, _ in bounds], dtype)
  spans = [slice(start, stop) for start, stop, _ in bounds]
  depth = len(leaf.stack)
  names = np.asarray(leaf.names, object).reshape(leaf.stack)[(*spans[:depth], ...)]
  for place, name in zip(np.ndindex(names.shape), names.flat, strict=True):
    part[place] = read_tensor(leaf, stored, name, tuple(spans[depth:]))
    tick(1)
  return part


def read_tensor(leaf: Leaf, stored: Stored, name: str, index: Index) -> np.ndarray:
  """What one stored tensor contributes to a leaf: the part `index` of its own shape."""
  bounds = list(index[::-1] if leaf.source.transpose else index)
  pick = None
  if leaf.piece:
    groups, width, start, size = leaf.piece
    rows = np.arange(*bounds[leaf.out_axis].indices(groups * size))
    rows = rows // size * width + start + rows % size  # where the piece's rows lie in the tensor
    bounds[leaf.out_axis] = slice(rows[0], rows[-1] + 1)
    pick = rows - rows[0]
  tensor = stored.read(name, tuple(bounds))
  if pick is not None and len(pick) < tensor.shape[leaf.out_axis]:
    tensor = tensor.take(pick, axis=leaf.out_axis)
  if leaf.source.offset:
    tensor = tensor.astype(np.float32) + np.float32(leaf.source.offset)
  return tensor.T if leaf.source.transpose else tensor


def _some(names: Sequence[str], most: int = 8) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest
