"""Which positions of a batch hold tokens, for a model that leaves out padding."""

from collections.abc import Iterable, Sequence

import numpy as np

from frozen_jax.core.types import HostBatch

_PARTS = 16  # sizes are multiples of this part of all positions: a program is compiled for each
_MAX_SHARE = 7 / 8  # of all positions; beyond it, to leave out the others saves nothing


class RealPositions:
  """Gives batches [B, T] their `real_positions`, where at least an eighth of all is padding.

  The sizes are few, and for a T never below what a sample of batches needs, so that nearly all
  batches of a T have one.
  """

  def __init__(self, samples: Iterable[Sequence[int]], lengths: Sequence[int]):
    """Finds what batches usually need; samples: the tokens of each row; lengths: those of T."""
    self._usual: dict[int, int] = {}
    for rows in samples:
      length = next(length for length in lengths if length >= max(rows))
      size = _rounded(sum(rows), len(rows) * length)
      self._usual[length] = max(self._usual.get(length, 0), size)

  def __call__(self, batch: HostBatch) -> HostBatch:
    """The batch, with `real_positions` as `core.types.Batch` has them."""
    mask = batch["mask"]
    size = max(_rounded(int(mask.sum()), mask.size), self._usual.get(mask.shape[1], 0))
    if size > mask.size * _MAX_SHARE:
      return batch
    real = np.full(size, mask.size, np.int32)
    found = np.flatnonzero(mask)
    real[: len(found)] = found
    return batch | {"real_positions": real}


def _rounded(count: int, total: int) -> int:
  """The smallest multiple of a sixteenth of all positions that is not below `count`."""
  part = -(-total // _PARTS)
  return -(-count // part) * part
