"""Which positions and targets of a batch are no padding, for a model that leaves padding out."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from frozen_jax.core.types import HostBatch
from frozen_jax.data.collate import num_targets, widths
from frozen_jax.data.tasks import Encoded

_PARTS = 16  # sizes of positions are multiples of this part of all
_SPARE_TARGETS = 9 / 8  # how many more than the sample has there may be, for they cost little
_MAX_SHARE = 7 / 8  # of all; beyond it, to leave out the others saves nothing


class Unpadding:
  """Gives batches the `real_positions` and `real_targets` of `core.types.Batch`.

  A program is compiled for each size of the two, so a T has one, and an M: what batches of a sample
  need at most. A batch that needs more, as few do, has twice that, and so on up to all.
  """

  def __init__(
    self, rows: Sequence[Encoded], lengths: Sequence[int], min_targets: int, batch_size: int
  ):
    """Finds the sizes; rows: of the sample, in the order of its batches; else as `collate`."""
    self._positions: dict[int, int] = {}  # sizes by T
    self._targets: dict[int, int] = {}  # by M
    for batch in _batches(rows, batch_size):
      length, most_targets = widths(batch, lengths, min_targets)
      positions = sum(len(row.tokens) for row in batch)
      targets = _SPARE_TARGETS * sum(map(num_targets, batch))
      _raise(self._positions, length, positions, -(-batch_size * length // _PARTS))
      _raise(self._targets, most_targets, targets, -(-batch_size // 2))

  def __call__(self, batch: HostBatch) -> HostBatch:
    """The batch with those of the two that leave out an eighth or more."""
    positions = real_indices(batch["mask"], self._positions)
    targets = real_indices(batch["target_mask"], self._targets)
    found = {"real_positions": positions, "real_targets": targets}
    return batch | {name: real for name, real in found.items() if real is not None}


def real_indices(
  mask: Int[np.ndarray, "B W"], sizes: Mapping[int, int]
) -> Int[np.ndarray, " C"] | None:
  """The index in B * W of each 1 of the mask, rising, then B * W for none.

  sizes: C for each W; where more is real, C is twice that, and so on. None where C is near B * W.
  """
  found, size = np.flatnonzero(mask), sizes.get(mask.shape[1], 0)
  while 0 < size < len(found):
    size *= 2
  if not 0 < size <= mask.size * _MAX_SHARE:
    return None
  real = np.full(size, mask.size, np.int32)
  real[: len(found)] = found
  return real


def _batches(rows: Sequence[Encoded], size: int) -> Iterator[Sequence[Encoded]]:
  return (rows[start : start + size] for start in range(0, len(rows), size))


def _raise(sizes: dict[int, int], width: int, needed: float, step: int) -> None:
  """Has the size of a width hold what is needed, rounded up to a multiple of the step."""
  sizes[width] = max(sizes.get(width, 0), math.ceil(needed / step) * step)
