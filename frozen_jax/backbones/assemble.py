"""Stored tensors -> the parameter tree: checks that nothing is missing or left over, then places.

Both formats come in as `Stored`; what they share is here. One tensor after the other is read,
brought onto the devices that need it, converted there (cast, or quantised) and written into its
place of the stack over the layers, so that the model exists once and in its final form only.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from tqdm import tqdm

from frozen_jax.backbones import stack
from frozen_jax.backbones.families.table import Family, Format, Source
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.sharding import rules

Index = tuple[slice, ...]

# Bytes of tensors that may be on their way to their places before reading waits for them.
_AHEAD = 32 * 2**20


class Convert(Protocol):
  """One tensor as its family means it ([in, out], [rows, D], [D]) -> what is kept of it.

  Traced; gives an array, or a small pytree of arrays (no dict) that are stacked one by one. Two
  that do the same must be equal and have the same hash, so that they are compiled once.
  """

  def __call__(self, tensor: jax.Array) -> Any: ...

  def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Cast:
  """Keeps a tensor in another type."""

  dtype: np.dtype

  def __call__(self, tensor: jax.Array) -> jax.Array:
    return tensor.astype(self.dtype)


class Stored(Protocol):
  """The tensors of a model as its file holds them.

  where: the file or folder, for messages. form: which names it uses. sliced: reading a part
  touches only the bytes of that part. shapes: name -> shape, row-major. types: name -> stored
  type. floats: the stored types that are read as floating point numbers. twice: name -> where else
  the same tensor is stored.
  """

  where: str
  form: Format
  sliced: bool
  shapes: Mapping[str, tuple[int, ...]]
  types: Mapping[str, str]
  floats: Collection[str]
  twice: Mapping[str, str]

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor as floating point numbers; it may be a view of the file."""
    ...

  def size(self, name: str) -> int:
    """How many bytes a tensor takes as stored."""
    ...

  def content(self, name: str) -> np.ndarray:
    """The stored bytes, uint8 [N] (for the fingerprint)."""
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
    return len(self.own_shape) - (2 if self.source.transpose else 1)

  @property
  def read_shape(self) -> tuple[int, ...]:
    """`own_shape` with its axes in the order in which they are stored."""
    return self.stored_order(self.own_shape)

  def stored_order(self, axes: Sequence[Any]) -> tuple[Any, ...]:
    """One thing for each axis of `own_shape` -> the same for each axis of the stored tensor."""
    return (*axes[:-2], axes[-1], axes[-2]) if self.source.transpose else tuple(axes)

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape that each of the stored tensors must have."""
    shape = list(self.read_shape)
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
    UserError: tensors are missing, left over, of another shape, stored twice or no floating point
      numbers; one message lists them all.
  """
  expected = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
  missing = [name for name in expected if name not in stored.shapes]
  known = lambda name: any(re.fullmatch(d, name) for d in derived)
  extra = [n for n in stored.shapes if n not in expected and n not in stored.twice and not known(n)]
  wrong = [
    f"{name} {list(stored.shapes[name])} instead of {list(shape)}"
    for name, shape in expected.items()
    if name in stored.shapes and tuple(stored.shapes[name]) != shape
  ]
  twice = [f"{name} ({where})" for name, where in stored.twice.items() if not known(name)]
  odd = [
    f"{name} (stored as {stored.types[name]})"
    for name in expected
    if name in stored.types and stored.types[name] not in stored.floats
  ]
  kinds = (
    ("missing", missing),
    ("not known", extra),
    ("of another shape", wrong),
    ("stored twice", twice),
    ("not floating point numbers, as quantised models have them", odd),
  )
  faults = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
  if faults:
    raise UserError(
      f"the tensors in {stored.where} do not make this model ({'; '.join(faults)}); the file is "
      "damaged, incomplete or of another model: get it again"
    )


def build(
  leaves: Sequence[Leaf],
  stored: Stored,
  convert: Callable[[str], Convert],
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """Reads every leaf onto the default device (mesh None) or onto its shards.

  Each process reads what its own devices hold, tensor by tensor, and beside what it keeps it holds
  about one tensor. convert: the path of a leaf -> what becomes of its tensors. axes: the logical
  axes of each parameter (see `sharding.rules`).
  """
  kept = shapes(leaves, convert)
  placed = mesh and paths.flatten(rules.shardings(paths.unflatten(kept), axes, mesh))
  tree = {}
  total = sum(len(leaf.names) for leaf in leaves)
  # The largest tensors first: what is held only for a while is then held while little is kept.
  order = sorted(leaves, key=lambda leaf: math.prod(leaf.own_shape), reverse=True)
  # The bar shows itself only when loading takes longer than a moment.
  with tqdm(total=total, desc="load", unit="tensor", disable=not progress, delay=2) as bar:
    for leaf in order:
      how = convert(leaf.path)
      narrow = how.dtype if isinstance(how, Cast) and not leaf.source.offset else None
      sharding = _read_sharding(leaf, axes, mesh)
      read = functools.partial(_to_devices, leaf, stored, sharding, narrow)
      out = placed[leaf.path] if placed else None
      tree[leaf.path] = _join(leaf, how, read, kept[leaf.path], out, bar.update)
  return paths.unflatten({leaf.path: tree[leaf.path] for leaf in leaves})


def shapes(leaves: Sequence[Leaf], convert: Callable[[str], Convert]) -> dict[str, Any]:
  """Path -> the `jax.ShapeDtypeStruct`s of what `build` makes of it; nothing is read."""

  def stacked(leaf: Leaf) -> Any:
    one = jax.ShapeDtypeStruct(leaf.own_shape, jnp.float32)
    kept = jax.eval_shape(convert(leaf.path), one)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*leaf.stack, *a.shape), a.dtype), kept)

  return {leaf.path: stacked(leaf) for leaf in leaves}


def _read_sharding(
  leaf: Leaf, axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh | None
) -> Sharding | None:
  """How a tensor of the leaf lies on the mesh as it is read: like its place in the stack."""
  if mesh is None:
    return None
  spec = rules.spec_of(leaf.shape, rules.axes_of(leaf.path, axes), mesh, leaf.path)
  return NamedSharding(mesh, PartitionSpec(*leaf.stored_order(spec[len(leaf.stack) :])))


def _join(
  leaf: Leaf,
  convert: Convert,
  read: Callable[[str], jax.Array],
  kept: Any,
  out: Any,
  tick: Callable[[], Any],
) -> Any:
  """Converts the tensors of a leaf and writes each into its place of the stack."""
  # Compiled once for each shape: jit remembers what equal functions and arguments gave.
  write = jax.jit(
    _write,
    static_argnames=("transpose", "offset", "convert"),
    donate_argnames="held",
    out_shardings=out,
  )
  how = {"transpose": leaf.source.transpose, "offset": leaf.source.offset, "convert": convert}
  held = None
  if leaf.stack:
    arrays, form = jax.tree.flatten(kept)
    held = jax.jit(_zeros, static_argnums=(0, 1), out_shardings=out)(tuple(arrays), form)
  ahead = 0
  for place, name in zip(np.ndindex(leaf.stack), leaf.names, strict=True):
    tensor = read(name)
    ahead += tensor.nbytes
    held = write(held, tensor, np.asarray(place, np.int32), **how)
    if ahead > _AHEAD:
      jax.block_until_ready(held)
      ahead = 0
    tick()
  return jax.block_until_ready(held)


def _zeros(arrays: tuple[jax.ShapeDtypeStruct, ...], form: Any) -> Any:
  return jax.tree.unflatten(form, [jnp.zeros(a.shape, a.dtype) for a in arrays])


def _write(
  held: Any, tensor: jax.Array, place: jax.Array, transpose: bool, offset: float, convert: Convert
) -> Any:
  """The stack with a tensor, as it was read, at `place`; without a stack what the tensor gives."""
  if transpose:
    tensor = tensor.swapaxes(-1, -2)
  if offset:
    tensor = tensor.astype(jnp.float32) + offset
  value = convert(tensor)
  if held is None:
    return value

  def put(whole: jax.Array, part: jax.Array) -> jax.Array:
    start = (*place, *(0 for _ in part.shape))
    return jax.lax.dynamic_update_slice(whole, part[(None,) * len(place)], start)

  dtypes = jax.tree.map(lambda a: a.dtype, value)
  return stack.unpack(jax.tree.map(put, stack.pack(held), stack.pack(value)), dtypes)


def _to_devices(
  leaf: Leaf, stored: Stored, sharding: Sharding | None, narrow: np.dtype | None, name: str
) -> jax.Array:
  """What one stored tensor contributes, as stored, on its devices; equal shards are read once.

  narrow: the type that it is cast to on the way if it is stored in a wider one.
  """
  every = (slice(None),) * len(leaf.read_shape)
  if sharding is None:
    return jax.device_put(_own(read_tensor(leaf, stored, name, every), narrow))
  whole = None if stored.sliced else read_tensor(leaf, stored, name, every)
  parts: dict[tuple[Any, ...], np.ndarray] = {}

  def part(index: Index) -> np.ndarray:
    bounds = tuple((i.start, i.stop) for i in index)
    if bounds not in parts:
      read = read_tensor(leaf, stored, name, index) if whole is None else whole[index]
      parts[bounds] = _own(read, narrow)
    return parts[bounds]

  return jax.make_array_from_callback(leaf.read_shape, sharding, part)


def read_tensor(leaf: Leaf, stored: Stored, name: str, index: Index) -> np.ndarray:
  """The part `index` (axes as stored) of what one stored tensor contributes to a leaf."""
  bounds = list(index)
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
  return tensor


def _own(tensor: np.ndarray, narrow: np.dtype | None) -> np.ndarray:
  """A copy that nobody else has: never of 64 bits, and of the type `narrow` if that is smaller.

  It is aligned to 64 bytes, for then XLA's CPU backend keeps it as it is. (So it would keep a view
  of a file, which others may write to.)
  """
  dtype = np.dtype(np.float32) if tensor.dtype == np.float64 else tensor.dtype
  if narrow is not None and narrow.itemsize < dtype.itemsize:
    dtype, tensor = narrow, tensor.astype(dtype, copy=False)
  size = tensor.size * dtype.itemsize
  room = np.empty(size + 64, np.uint8)
  start = -room.ctypes.data % 64
  copy = room[start : start + size].view(dtype).reshape(tensor.shape)
  np.copyto(copy, tensor, casting="unsafe")
  return copy


def _some(names: Sequence[str], most: int = 8) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest
