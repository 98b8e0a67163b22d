"""Which positions of a batch hold tokens, for a model that leaves out padding."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from frozen_jax.core.types import HostBatch

_PARTS = 16  # sizes are multiples of this part of all positions
_MAX_SHARE = 7 / 8  # of all positions; beyond it, to leave out the others saves nothing


class RealPositions:
  """Gives batches [B, T] their `real_positions`, where at least an eighth of all is padding.

  A program is compiled for each size, so a T has one: what a sample of batches needs at most. A
  batch that needs more, as few do, is left as it is.
  """

  def __init__(self, samples: Iterable[Sequence[int]], lengths: Sequence[int], rows: int):
    """Finds the sizes; samples: the tokens of each row of batches; lengths: those of T; rows: B."""
    self._sizes: dict[int, int] = {}
    for tokens in samples:
      length = next(length for length in lengths if length >= max(tokens))
      share = sum(tokens) / (len(tokens) * length)
      size = math.ceil(share * _PARTS) * rows * length // _PARTS
      self._sizes[length] = max(self._sizes.get(length, 0), size)

  def __call__(self, batch: HostBatch) -> HostBatch:
    """The batch, with `real_positions` as `core.types.Batch` has them."""
    mask = batch["mask"]
    found, size = np.flatnonzero(mask), self._sizes.get(mask.shape[1], 0)
    if not len(found) <= size <= mask.size * _MAX_SHARE:
      return batch
    real = np.full(size, mask.size, np.int32)
    real[: len(found)] = found
    return batch | {"real_positions": real}
