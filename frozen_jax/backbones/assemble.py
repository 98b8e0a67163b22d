"""Stored tensors -> the parameter tree: checks names and shapes, then loads tensor by tensor.

This is the part that both file formats share (each implements `StoredTensors`). One tensor after
the other is read, copied to the devices that need it, converted there (cast, or quantised) and
written into its position of the stack over the layers, so that the model is in memory only once, in
its final form.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from frozen_jax.backbones import stack
from frozen_jax.backbones.families.table import Family, Format, TensorSource
from frozen_jax.backbones.stored_tensors import Index, StoredTensors, TensorReader
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar
from frozen_jax.sharding import rules

# Bytes of tensors that may be in transfer to the devices before reading waits for them.
_MAX_PENDING_BYTES = 32 * 2**20


@runtime_checkable
class Convert(Protocol):
  """One tensor in the layout of the tree ([in, out], [rows, D], [D]) -> its form in memory.

  Traced; returns an array, or a small pytree of arrays (no dict), each of which is stacked. Two
  converters that do the same must be equal and have the same hash, so that they are compiled once.
  """

  def __call__(self, tensor: jax.Array) -> Any: ...

  def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Cast:
  """Casts a tensor to another dtype."""

  dtype: np.dtype

  def __call__(self, tensor: jax.Array) -> jax.Array:
    return tensor.astype(self.dtype)


class FusedSlice(NamedTuple):
  """Where one of several fused matrices lies in the outputs of a tensor, in each of its groups.

  The tensor's outputs are [groups, group_width]; this matrix has `width` of each group, from
  `start` on.
  """

  groups: int
  group_width: int
  start: int
  width: int

  def within(self, outputs: np.ndarray) -> np.ndarray:
    """Where some of this matrix's outputs are among those of the tensor."""
    return outputs // self.width * self.group_width + self.start + outputs % self.width


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the tree: the tensors that it consists of, and how it is made from them.

  stack_shape: the axes over tensors, (L,) or (L, E) or (). names: of the tensors, in row-major
  order of these axes. shape: of the whole array. source: how a tensor becomes its slice of the
  array. fused: where the array's outputs lie in each tensor, if the tensor has more than these.
  """

  path: str
  names: tuple[str, ...]
  stack_shape: tuple[int, ...]
  shape: tuple[int, ...]
  source: TensorSource
  fused: FusedSlice | None

  @property
  def slice_shape(self) -> tuple[int, ...]:
    """The shape of the slice of the array that comes from one tensor."""
    return self.shape[len(self.stack_shape) :]

  @property
  def out_axis(self) -> int:
    """The axis of the stored tensor over a linear layer's outputs."""
    return len(self.slice_shape) - (2 if self.source.transpose else 1)

  @property
  def read_shape(self) -> tuple[int, ...]:
    """`slice_shape` with its axes in the order in which they are stored."""
    return self.stored_order(self.slice_shape)

  def stored_order(self, axes: Sequence[Any]) -> tuple[Any, ...]:
    """A value for each axis of `slice_shape` -> the same in the order of the stored axes."""
    return (*axes[:-2], axes[-1], axes[-2]) if self.source.transpose else tuple(axes)

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape that each of the stored tensors must have."""
    shape = list(self.read_shape)
    if self.fused:
      shape[self.out_axis] = self.fused.groups * self.fused.group_width
    return tuple(shape)


def plan_leaves(config: Any, family: Family, format: Format) -> list[Leaf]:
  """The arrays of the tree and the names of the tensors that they consist of.

  Raises:
    UserError: the format has no name for an array of the config.
  """
  keys = {key.path: key for key in family.keys}
  shapes = paths.flatten(family.network.param_shapes(config))
  nameless = [p for p in shapes if p not in keys or getattr(keys[p], format) is None]
  if nameless:
    raise UserError(
      f"a model of type {family.hf_name!r} with {_abbreviated(nameless)} has no names for these in "
      f"{format} files; its settings do not fit its family"
    )
  return [
    _leaf(path, leaf.shape, getattr(keys[path], format), config) for path, leaf in shapes.items()
  ]


def _leaf(path: str, shape: tuple[int, ...], source: TensorSource, config: Any) -> Leaf:
  axes = [axis for axis in ("layer", "expert") if f"{{{axis}}}" in source.name]
  stack_shape = shape[: len(axes)]
  indices = itertools.product(*(range(source.first, source.first + n) for n in stack_shape))
  names = tuple(source.name.format(**dict(zip(axes, index, strict=True))) for index in indices)
  fused = None
  if source.part:
    groups, widths = source.part.layout(config)
    start, width = sum(widths[: source.part.index]), widths[source.part.index]
    fused = FusedSlice(groups, sum(widths), start, width)
  return Leaf(path, names, stack_shape, shape, source, fused)


def check_tensors(leaves: Sequence[Leaf], stored: StoredTensors, derived: Sequence[str]) -> None:
  """Compares the stored tensors with the leaves.

  derived: regular expressions of tensors that need not be read.

  Raises:
    UserError: tensors are missing, unknown, of another shape, stored twice or not of floating point
      numbers; one message lists them all.
  """
  expected = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
  missing = [name for name in expected if name not in stored.shapes]
  is_derived = lambda name: any(re.fullmatch(pattern, name) for pattern in derived)
  not_read = [name for name in stored.shapes if name not in expected and not is_derived(name)]
  unknown = [name for name in not_read if name not in stored.duplicates]
  misshapen = [
    f"{name} {list(stored.shapes[name])} instead of {list(shape)}"
    for name, shape in expected.items()
    if name in stored.shapes and tuple(stored.shapes[name]) != shape
  ]
  duplicates = [
    f"{name} ({other})" for name, other in stored.duplicates.items() if not is_derived(name)
  ]
  not_floats = [
    f"{name} (stored as {stored.dtypes[name]})"
    for name in expected
    if name in stored.dtypes and stored.dtypes[name] not in stored.float_dtypes
  ]
  kinds = (
    ("missing", missing),
    ("not known", unknown),
    ("of another shape", misshapen),
    ("stored twice", duplicates),
    ("not floating point numbers, as quantised models have them", not_floats),
  )
  faults = [f"{len(names)} {kind}: {_abbreviated(names)}" for kind, names in kinds if names]
  if faults:
    raise UserError(
      f"the tensors in {stored.location} do not make this model ({'; '.join(faults)}); the file is "
      "damaged, incomplete or of another model: get it again"
    )


def load_params(
  leaves: Sequence[Leaf],
  stored: TensorReader,
  convert: Callable[[str], Convert],
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """Reads every leaf onto the default device (mesh None) or onto its shards.

  Each process reads the shards of its own devices, tensor by tensor; its peak memory exceeds its
  shards by about one tensor.

  Args:
    convert: the path of a leaf -> the conversion of its tensors.
    axes: the logical axes of each parameter (see `sharding.rules`).
  """
  arrays = param_shapes(leaves, convert)
  shardings = mesh and paths.flatten(rules.shardings(paths.unflatten(arrays), axes, mesh))
  tree = {}
  total = sum(len(leaf.names) for leaf in leaves)
  # The largest tensors first: temporary copies are largest while few arrays are loaded.
  largest_first = sorted(leaves, key=lambda leaf: math.prod(leaf.slice_shape), reverse=True)
  # The bar appears only when loading takes longer than two seconds.
  with ProgressBar(total=total, desc="load", unit="tensor", disable=not progress, delay=2) as bar:
    for leaf in largest_first:
      conversion = convert(leaf.path)
      cast = isinstance(conversion, Cast) and not leaf.source.offset
      dtype = conversion.dtype if cast else None
      sharding = _read_sharding(leaf, axes, mesh)
      read = functools.partial(_to_devices, leaf, stored, sharding, dtype)
      out = shardings[leaf.path] if shardings else None
      tree[leaf.path] = _load_leaf(leaf, conversion, read, arrays[leaf.path], out, bar.update)
  return paths.unflatten({leaf.path: tree[leaf.path] for leaf in leaves})


def param_shapes(leaves: Sequence[Leaf], convert: Callable[[str], Convert]) -> dict[str, Any]:
  """Path -> the `jax.ShapeDtypeStruct`s of what `load_params` loads; nothing is read."""

  def stacked(leaf: Leaf) -> Any:
    tensor = jax.ShapeDtypeStruct(leaf.slice_shape, jnp.float32)
    return jax.tree.map(
      lambda array: jax.ShapeDtypeStruct((*leaf.stack_shape, *array.shape), array.dtype),
      jax.eval_shape(convert(leaf.path), tensor),
    )

  return {leaf.path: stacked(leaf) for leaf in leaves}


def _read_sharding(
  leaf: Leaf, axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh | None
) -> Sharding | None:
  """The sharding of a tensor of the leaf when it is read: that of its slice of the array."""
  if mesh is None:
    return None
  spec = rules.spec_of(leaf.shape, rules.axes_of(leaf.path, axes), mesh, leaf.path)
  return NamedSharding(mesh, PartitionSpec(*leaf.stored_order(spec[len(leaf.stack_shape) :])))


def _load_leaf(
  leaf: Leaf,
  convert: Convert,
  read: Callable[[str], jax.Array],
  arrays: Any,
  out: Any,
  tick: Callable[[], Any],
) -> Any:
  """Converts the tensors of a leaf and writes each into its position of the stack.

  arrays: the `jax.ShapeDtypeStruct`s of the leaf. out: their shardings. tick: called for each
  tensor.
  """
  # Compiled once for each shape: jit caches by equal functions and arguments.
  write = jax.jit(
    _write,
    static_argnames=("transpose", "offset", "convert"),
    donate_argnames="stacked",
    out_shardings=out,
  )
  options = {"transpose": leaf.source.transpose, "offset": leaf.source.offset, "convert": convert}
  stacked = None
  if leaf.stack_shape:
    leaves, treedef = jax.tree.flatten(arrays)
    stacked = jax.jit(_zeros, static_argnums=(0, 1), out_shardings=out)(tuple(leaves), treedef)
  pending_bytes = 0
  for position, name in zip(np.ndindex(leaf.stack_shape), leaf.names, strict=True):
    tensor = read(name)
    pending_bytes += tensor.nbytes
    stacked = write(stacked, tensor, np.asarray(position, np.int32), **options)
    if pending_bytes > _MAX_PENDING_BYTES:
      jax.block_until_ready(stacked)
      pending_bytes = 0
    tick()
  return jax.block_until_ready(stacked)


def _zeros(arrays: tuple[jax.ShapeDtypeStruct, ...], treedef: Any) -> Any:
  return jax.tree.unflatten(treedef, [jnp.zeros(a.shape, a.dtype) for a in arrays])


def _write(
  stacked: Any,
  tensor: jax.Array,
  position: jax.Array,
  transpose: bool,
  offset: float,
  convert: Convert,
) -> Any:
  """The stack with a tensor, converted, at `position`; where there is no stack, the tensor."""
  if transpose:
    tensor = tensor.swapaxes(-1, -2)
  if offset:
    tensor = tensor.astype(jnp.float32) + offset
  value = convert(tensor)
  if stacked is None:
    return value

  def update(array: jax.Array, part: jax.Array) -> jax.Array:
    start = (*position, *(0 for _ in part.shape))
    return jax.lax.dynamic_update_slice(array, part[(None,) * len(position)], start)

  dtypes = jax.tree.map(lambda array: array.dtype, value)
  return stack.unpack(jax.tree.map(update, stack.pack(stacked), stack.pack(value)), dtypes)


def _to_devices(
  leaf: Leaf, stored: TensorReader, sharding: Sharding | None, dtype: np.dtype | None, name: str
) -> jax.Array:
  """A leaf's part of one stored tensor on its devices; equal shards are read once.

  dtype: what it will be cast to; it is cast on the host already if it is stored in a wider type.
  """
  full = (slice(None),) * len(leaf.read_shape)
  if sharding is None:
    return jax.device_put(_aligned_copy(read_tensor(leaf, stored, name, full), dtype))
  tensor = None if stored.reads_slices else read_tensor(leaf, stored, name, full)
  shards: dict[tuple[Any, ...], np.ndarray] = {}

  def shard(index: Index) -> np.ndarray:
    bounds = tuple((i.start, i.stop) for i in index)
    if bounds not in shards:
      part = read_tensor(leaf, stored, name, index) if tensor is None else tensor[index]
      shards[bounds] = _aligned_copy(part, dtype)
    return shards[bounds]

  return jax.make_array_from_callback(leaf.read_shape, sharding, shard)


def read_tensor(leaf: Leaf, stored: TensorReader, name: str, index: Index) -> np.ndarray:
  """The part `index` (axes in stored order) of a leaf's part of one stored tensor."""
  bounds = list(index)
  rows = None
  if leaf.fused:
    count = leaf.fused.groups * leaf.fused.width
    rows = leaf.fused.within(np.arange(*bounds[leaf.out_axis].indices(count)))
    bounds[leaf.out_axis] = slice(rows[0], rows[-1] + 1)
  tensor = stored.read(name, tuple(bounds))
  if rows is not None and len(rows) < tensor.shape[leaf.out_axis]:
    tensor = tensor.take(rows - rows[0], axis=leaf.out_axis)
  return tensor


def _aligned_copy(tensor: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
  """A copy, float32 instead of float64, and of `dtype` if that is narrower than the stored type.

  It is aligned to 64 bytes, so that XLA's CPU backend uses it without another copy. (XLA would also
  use a view of the file, which other programs may write to.)
  """
  out_dtype = np.dtype(np.float32) if tensor.dtype == np.float64 else tensor.dtype
  if dtype is not None and dtype.itemsize < out_dtype.itemsize:
    out_dtype, tensor = dtype, tensor.astype(out_dtype, copy=False)
  size = tensor.size * out_dtype.itemsize
  buffer = np.empty(size + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  copy = buffer[start : start + size].view(out_dtype).reshape(tensor.shape)
  np.copyto(copy, tensor, casting="unsafe")
  return copy


def _abbreviated(names: Sequence[str], max_names: int = 8) -> str:
  rest = f" and {len(names) - max_names} more" if len(names) > max_names else ""
  return ", ".join(names[:max_names]) + rest
