"""Loading a model quantised: tensor by tensor, so that all of it never exists in full precision.

Each matrix is quantised once it is read, on the devices that store it. GGUF blocks of the same kind
are used directly instead: their codes, scales and offsets are read as three arrays. While a stack
over the layers is filled, 4-bit codes are stored two to a byte: to write into an array of 4-bit
numbers XLA's CPU backend would copy all of it, number by number.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Num, UInt8

from frozen_jax.backbones import assemble, gguf_blocks, quantized
from frozen_jax.backbones.assemble import Cast, Convert, Leaf
from frozen_jax.backbones.gguf_blocks import Blocks
from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.quantized import Quantized
from frozen_jax.backbones.stored_tensors import Index, StoredTensors
from frozen_jax.core import paths
from frozen_jax.sharding import rules


@dataclasses.dataclass(frozen=True)
class QuantizeTensor:
  """Matrix -> its codes, 4-bit ones as bytes, scales and offsets (`assemble.Convert`)."""

  kind: str
  axis: int
  dtype: np.dtype

  def __call__(self, tensor: Float[Array, "..."]) -> Blocks:
    leaf = quantized.quantize(tensor, self.kind, self.axis, self.dtype)
    return Blocks(_as_bytes(leaf.numbers.qvalue), leaf.numbers.scale, leaf.offset)


@dataclasses.dataclass(frozen=True)
class CastField:
  """A field of GGUF blocks in its dtype, 4-bit codes as bytes (`assemble.Convert`)."""

  dtype: np.dtype

  def __call__(self, tensor: Num[Array, "..."]) -> Num[Array, "..."]:
    return _as_bytes(tensor.astype(self.dtype))


def convert(dtype: np.dtype, kind: str | None, path: str) -> Convert:
  """The conversion of the tensors of the leaf at this path; kind None: nothing is quantised."""
  axis = None if kind is None else quantized.summed_axis(path)
  return Cast(dtype) if axis is None else QuantizeTensor(kind, axis, dtype)


def build(
  leaves: Sequence[Leaf],
  stored: StoredTensors,
  kind: str,
  dtype: np.dtype,
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """`assemble.load_params`, with each matrix as a `Quantized` of this kind, for use in `dtype`."""
  types = block_types(leaves, stored, kind)
  in_blocks = [leaf for leaf in leaves if leaf.path in types]
  others = [leaf for leaf in leaves if leaf not in in_blocks]
  conversion = functools.partial(convert, dtype, kind)
  tree = paths.flatten(assemble.load_params(others, stored, conversion, axes, mesh, progress))
  if isinstance(stored, GGUFFile):
    fields = [
      paths.flatten(_field(name, in_blocks, stored, axes, mesh, progress))
      for name in Blocks._fields
    ]
    for leaf in in_blocks:
      tree[leaf.path] = Blocks(*(field.pop(leaf.path, None) for field in fields))
  for path, value in tree.items():
    if isinstance(value, Blocks):
      tree[path] = _as_quantized(path, value, kind, dtype, axes, mesh)
  return paths.unflatten(tree)


def block_types(leaves: Sequence[Leaf], stored: StoredTensors, kind: str) -> dict[str, str]:
  """Path -> GGUF type, of the leaves whose blocks are used unchanged."""
  return {
    leaf.path: stored.dtypes[leaf.names[0]] for leaf in leaves if _in_blocks(leaf, stored, kind)
  }


def loaded_shapes(
  shapes: Mapping[str, Any],
  kind: str | None,
  dtype: np.dtype,
  blocks: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """The shapes of a model's parameters -> those of what is loaded; nothing is read.

  shapes: nested dicts of `jax.ShapeDtypeStruct`s, as the result. kind None: nothing is quantised.
  blocks: the `block_types` of its file, if it has any.
  """

  def loaded(path: str, array: jax.ShapeDtypeStruct) -> Any:
    axis = None if kind is None else quantized.summed_axis(path)
    if axis is None:
      return jax.ShapeDtypeStruct(array.shape, dtype)
    if blocks and path in blocks:
      return _blocks_shapes(array.shape, axis, blocks[path], dtype)
    return jax.eval_shape(
      functools.partial(quantized.quantize, kind=kind, axis=axis, dtype=dtype), array
    )

  leaves = {path: loaded(path, array) for path, array in paths.flatten(shapes).items()}
  return paths.unflatten(leaves)


def _blocks_shapes(shape: tuple[int, ...], axis: int, gguf_type: str, dtype: np.dtype) -> Quantized:
  """The shapes of a matrix of which the blocks are used; axis: the summed one."""
  codes, *others = gguf_blocks.block_dtypes(gguf_type)
  groups = list(shape)
  groups[axis] //= quantized.MAX_GROUP_SIZE
  scale, offset = (of and jax.ShapeDtypeStruct(tuple(groups), of) for of in others)
  numbers = qwix.QArray(jax.ShapeDtypeStruct(shape, codes), scale, qtype=codes)
  return Quantized(numbers, offset, dtype)


def _as_quantized(
  path: str, blocks: Blocks, kind: str, dtype: np.dtype, axes, mesh: Mesh | None
) -> Quantized:
  """Blocks -> `Quantized`; of 4-bit codes, those with an offset and those of nf4 are unsigned."""
  codes, scale, offset = blocks
  if codes.dtype == jnp.uint8:
    signed = kind != "nf4" and offset is None
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    sharding = mesh and NamedSharding(
      mesh, rules.spec_of(shape, rules.axes_of(path, axes), mesh, path)
    )
    unpack = jax.jit(_from_bytes, static_argnums=1, out_shardings=sharding)
    codes = unpack(codes, jnp.int4 if signed else jnp.uint4)
  numbers = qwix.QArray(codes, scale, qtype="nf4" if kind == "nf4" else codes.dtype)
  return jax.block_until_ready(Quantized(numbers, offset, dtype))


def _as_bytes(codes: Num[Array, "..."]) -> Num[Array, "..."]:
  """4-bit codes two to a byte; unchanged if they are others, or an odd number in a row."""
  if jnp.issubdtype(codes.dtype, jnp.floating) or jnp.iinfo(codes.dtype).bits != 4:
    return codes
  if codes.shape[-1] % 2:
    return codes
  return jax.lax.bitcast_convert_type(codes.reshape(*codes.shape[:-1], -1, 2), jnp.uint8)


def _from_bytes(pairs: UInt8[Array, "..."], dtype: Any) -> Num[Array, "..."]:
  """The inverse of `_as_bytes`; dtype: of the codes."""
  codes = jax.lax.bitcast_convert_type(pairs, dtype)
  return codes.reshape(*pairs.shape[:-1], -1)


def _in_blocks(leaf: Leaf, stored: StoredTensors, kind: str) -> bool:
  """Whether every tensor of the leaf is stored in blocks of this kind along the summed axis."""
  axis = quantized.summed_axis(leaf.path)
  along_axis = axis is not None and leaf.source.transpose == (axis == -2)
  if not isinstance(stored, GGUFFile) or not along_axis or leaf.source.offset:
    return False
  types = {stored.dtypes[name] for name in leaf.names}
  return len(types) == 1 and gguf_blocks.fits(kind, *types)


def _field(
  name: str,
  leaves: Sequence[Leaf],
  stored: GGUFFile,
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """One field of the `Blocks` of each leaf that has it, arranged as the leaf's numbers would be."""
  shaped, conversions = [], {}
  for leaf in leaves:
    array = getattr(stored.blocks(leaf.names[0]), name)
    if array is None:
      continue
    conversions[leaf.path] = CastField(array.dtype)
    shape, axis = list(leaf.shape), quantized.summed_axis(leaf.path)
    shape[axis] = array.shape[-1]
    shaped.append(dataclasses.replace(leaf, shape=tuple(shape)))
  return assemble.load_params(
    shaped, _FieldView(stored, name), conversions.get, axes, mesh, progress
  )


class _FieldView:
  """One field of the blocks of each tensor of a GGUF file (`stored_tensors.TensorReader`)."""

  reads_slices = False

  def __init__(self, stored: GGUFFile, field: str):
    self._stored, self._field = stored, field

  def read(self, name: str, index: Index) -> np.ndarray:
    return getattr(self._stored.blocks(name), self._field)[index]
