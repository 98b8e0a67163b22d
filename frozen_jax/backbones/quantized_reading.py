"""Reading a model at fewer bits: tensor by tensor, so that it never exists whole in full precision.

Each matrix is quantised where it has been read, on the devices that keep it. GGUF blocks of the
wanted kind are taken over instead: their codes, scales and offsets are read as three arrays.
While a stack over the layers grows, 4-bit codes lie two to a byte: to write into an array of 4-bit
numbers XLA's CPU backend copies all of it, number by number.
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

from frozen_jax.backbones import assemble, gguf_blocks, quantized
from frozen_jax.backbones.assemble import Cast, Convert, Index, Leaf, Stored
from frozen_jax.backbones.gguf_blocks import Blocks
from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.quantized import Quantized
from frozen_jax.core import paths
from frozen_jax.sharding import rules


@dataclasses.dataclass(frozen=True)
class Quantise:
  """A matrix -> its codes as bytes, scales and offsets (`assemble.Convert`)."""

  kind: str
  axis: int
  dtype: np.dtype

  def __call__(self, tensor: jax.Array) -> Blocks:
    made = quantized.quantize(tensor, self.kind, self.axis, self.dtype)
    return Blocks(_bytes(made.numbers.qvalue), made.numbers.scale, made.offset)


@dataclasses.dataclass(frozen=True)
class Keep:
  """A field of blocks in its type, 4-bit codes as bytes (`assemble.Convert`)."""

  dtype: np.dtype

  def __call__(self, tensor: jax.Array) -> jax.Array:
    return _bytes(tensor.astype(self.dtype))


def convert(dtype: np.dtype, kind: str | None, path: str) -> Convert:
  """What becomes of the tensors of the leaf at this path; kind None: nothing is quantised."""
  axis = None if kind is None else quantized.summed_axis(path)
  return Cast(dtype) if axis is None else Quantise(kind, axis, dtype)


def build(
  leaves: Sequence[Leaf],
  stored: Stored,
  kind: str,
  dtype: np.dtype,
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """As `assemble.build`, with the matrices as `Quantized` of this kind for use in `dtype`."""
  kept = [leaf for leaf in leaves if _in_blocks(leaf, stored, kind)]
  others = [leaf for leaf in leaves if leaf not in kept]
  becomes = functools.partial(convert, dtype, kind)
  tree = paths.flatten(assemble.build(others, stored, becomes, axes, mesh, progress))
  fields = [
    paths.flatten(_field(name, kept, stored, axes, mesh, progress)) for name in Blocks._fields
  ]
  for leaf in kept:
    tree[leaf.path] = Blocks(*(field.pop(leaf.path, None) for field in fields))
  for path, held in tree.items():
    if isinstance(held, Blocks):
      tree[path] = _finished(path, held, kind, dtype, axes, mesh)
  return paths.unflatten(tree)


def _finished(path, held: Blocks, kind: str, dtype: np.dtype, axes, mesh: Mesh | None) -> Quantized:
  """The codes as what they are: signed where there is no offset, unless they are nf4's."""
  codes, scale, offset = held
  if codes.dtype == jnp.uint8:
    signed = kind != "nf4" and offset is None
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    spread = mesh and NamedSharding(
      mesh, rules.spec_of(shape, rules.axes_of(path, axes), mesh, path)
    )
    split = jax.jit(_split, static_argnums=1, out_shardings=spread)
    codes = split(codes, jnp.int4 if signed else jnp.uint4)
  numbers = qwix.QArray(codes, scale, qtype="nf4" if kind == "nf4" else codes.dtype)
  return jax.block_until_ready(Quantized(numbers, offset, dtype))


def _bytes(codes: jax.Array) -> jax.Array:
  """4-bit codes two to a byte; others, and an odd number of them, as they are."""
  if jnp.issubdtype(codes.dtype, jnp.floating) or jnp.iinfo(codes.dtype).bits != 4:
    return codes
  if codes.shape[-1] % 2:
    return codes
  return jax.lax.bitcast_convert_type(codes.reshape(*codes.shape[:-1], -1, 2), jnp.uint8)


def _split(pairs: jax.Array, dtype: Any) -> jax.Array:
  """The inverse of `_bytes`."""
  codes = jax.lax.bitcast_convert_type(pairs, dtype)
  return codes.reshape(*pairs.shape[:-1], -1)


def _in_blocks(leaf: Leaf, stored: Stored, kind: str) -> bool:
  """Whether every tensor of the leaf is stored in blocks of this kind along the summed axis."""
  axis = quantized.summed_axis(leaf.path)
  along = axis is not None and leaf.source.transpose == (axis == -2)
  if not isinstance(stored, GGUFFile) or not along or leaf.source.offset:
    return False
  types = {stored.types[name] for name in leaf.names}
  return len(types) == 1 and gguf_blocks.fits(kind, *types)


def _field(
  name: str,
  leaves: Sequence[Leaf],
  stored: GGUFFile,
  axes: Mapping[str, tuple[str | None, ...]],
  mesh: Mesh | None,
  progress: bool,
) -> dict[str, Any]:
  """One field of the `Blocks` of each leaf that has it, put in order as the numbers would be."""
  shaped, keep = [], {}
  for leaf in leaves:
    array = getattr(stored.blocks(leaf.names[0]), name)
    if array is None:
      continue
    keep[leaf.path] = Keep(array.dtype)
    shape, axis = list(leaf.shape), quantized.summed_axis(leaf.path)
    shape[axis] = array.shape[-1]
    shaped.append(dataclasses.replace(leaf, shape=tuple(shape)))
  return assemble.build(shaped, _View(stored, name), keep.get, axes, mesh, progress)


class _View:
  """The tensors of a GGUF file, each shown as one field of its blocks (what `build` asks for)."""

  sliced = False

  def __init__(self, stored: GGUFFile, field: str):
    self._stored, self._field = stored, field

  def read(self, name: str, index: Index) -> np.ndarray:
    return getattr(self._stored.blocks(name), self._field)[index]
