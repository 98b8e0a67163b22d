"""Stored tensors -> the parameter tree: checks that nothing is missing or left over, then places.

Both formats come in as `Stored`; what they share is here. A leaf that is a stack over the layers
is put together in its final dtype, one leaf at a time, so that no second copy of the model exists.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from frozen_jax.backbones import decoder, families
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import Family, Format
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
  """One array of the tree: the tensors it is made of (one, or one a layer) and how."""

  path: str
  names: tuple[str, ...]
  shape: tuple[int, ...]
  stacked: bool
  transpose: bool

  @property
  def stored_shape(self) -> tuple[int, ...]:
    own = self.shape[1:] if self.stacked else self.shape
    return own[::-1] if self.transpose else own


def plan(config: DecoderConfig, family: Family, form: Format) -> list[Leaf]:
  """The leaves of the tree and the names of the tensors that make them."""
  made = []
  for path, (key, shape, stacked) in families.leaves(config, family).items():
    pattern = getattr(key, form)
    count = range(config.layers) if stacked else range(1)
    names = tuple(pattern.format(layer=layer) for layer in count)
    made.append(Leaf(path, names, shape, stacked, key.transpose))
  return made


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
  leaves: Sequence[Leaf], stored: Stored, dtype: np.dtype, mesh: Mesh | None, progress: bool
) -> dict[str, Any]:
  """Reads every leaf in `dtype` onto the default device (mesh None) or onto its shards."""
  shapes = paths.unflatten({leaf.path: jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf in leaves})
  placed = mesh and paths.flatten(rules.shardings(shapes, decoder.PARAM_AXES, mesh))
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
  first = spans[0].start if leaf.stacked else 0
  inner = tuple(spans[1:] if leaf.stacked else spans)
  for row, target in enumerate(part if leaf.stacked else [part]):
    tensor = stored.read(leaf.names[first + row], inner[::-1] if leaf.transpose else inner)
    target[...] = tensor.T if leaf.transpose else tensor
    tick(1)
  return part


def _some(names: Sequence[str], most: int = 8) -> str:
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest
