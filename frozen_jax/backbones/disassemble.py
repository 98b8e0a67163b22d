"""The parameter tree -> stored tensors: the inverse of `assemble`, by the same tables of names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from frozen_jax.backbones.assemble import Leaf


class Piece(NamedTuple):
  """What an array of the tree holds of one stored tensor: its slice at `position` of the stack."""

  leaf: Leaf
  position: tuple[int, ...]

  def put(self, tensor: Float[np.ndarray, "..."], value: Float[np.ndarray, "..."]) -> None:
    """Writes a slice of the array ([in, out], [rows, D], [D]) where it lies in the tensor."""
    value = value - value.dtype.type(self.leaf.source.offset)
    tensor[self._index] = value.swapaxes(-1, -2) if self.leaf.source.transpose else value

  def take(self, tensor: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The slice of the array that the tensor holds: the inverse of `put`."""
    value = tensor[self._index]
    value = value.swapaxes(-1, -2) if self.leaf.source.transpose else value
    return value + value.dtype.type(self.leaf.source.offset)

  @property
  def _index(self) -> tuple[Any, ...]:
    fused = self.leaf.fused
    if fused is None:
      return ()
    outputs = np.arange(fused.groups * fused.width)
    return (*(slice(None),) * self.leaf.out_axis, fused.within(outputs))


def pieces_by_tensor(leaves: Sequence[Leaf]) -> dict[str, list[Piece]]:
  """The name of each stored tensor -> all that it consists of."""
  pieces: dict[str, list[Piece]] = {}
  for leaf in leaves:
    for position, name in zip(np.ndindex(leaf.stack_shape), leaf.names, strict=True):
      pieces.setdefault(name, []).append(Piece(leaf, position))
  return pieces


def stored_tensors(
  leaves: Sequence[Leaf], arrays: Mapping[str, Any]
) -> dict[str, Float[np.ndarray, "..."]]:
  """The arrays of a tree by path -> its stored tensors by name, float32."""
  host = {leaf.path: np.asarray(arrays[leaf.path], np.float32) for leaf in leaves}
  tensors = {}
  for name, pieces in pieces_by_tensor(leaves).items():
    tensors[name] = np.empty(pieces[0].leaf.stored_shape, np.float32)
    for piece in pieces:
      piece.put(tensors[name], host[piece.leaf.path][piece.position])
  return tensors
