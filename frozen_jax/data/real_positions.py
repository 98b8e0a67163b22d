"""Which positions and targets of a batch are no padding, for a model that leaves padding out."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from frozen_jax.core.types import HostBatch

_PARTS = 16  # sizes are multiples of this part of all places
_MAX_SHARE = 7 / 8  # of all places; beyond it, to leave out the others saves nothing


class RealPlaces:
  """Where rows [B, W] of one kind, of tokens or of targets, have no padding.

  A program is compiled for each size, so a W has one: what a sample of batches needs at most.
  """

  def __init__(self, samples: Iterable[tuple[int, Sequence[int]]], rows: int):
    """Finds the sizes; samples: of batches their W, and how much each row has; rows: B."""
    self._sizes: dict[int, int] = {}
    for width, counts in samples:
      share = sum(counts) / (len(counts) * width)
      size = math.ceil(share * _PARTS) * rows * width // _PARTS
      self._sizes[width] = max(self._sizes.get(width, 0), size)

  def of(self, mask: Int[np.ndarray, "B W"]) -> Int[np.ndarray, " C"] | None:
    """The index in B * W of each real place, rising; then B * W for none.

    None where less than an eighth is padding, or, as in few batches, more is real than the size.
    """
    found, size = np.flatnonzero(mask), self._sizes.get(mask.shape[1], 0)
    if not len(found) <= size <= mask.size * _MAX_SHARE:
      return None
    real = np.full(size, mask.size, np.int32)
    real[: len(found)] = found
    return real


class RealPositions:
  """Gives batches their `real_positions` and `real_targets`, see `core.types.Batch`."""

  def __init__(self, positions: RealPlaces, targets: RealPlaces):
    self._positions, self._targets = positions, targets

  def __call__(self, batch: HostBatch) -> HostBatch:
    """The batch with those of the two that it needs."""
    positions = self._positions.of(batch["mask"])
    targets = self._targets.of(batch["target_mask"])
    found = {"real_positions": positions, "real_targets": targets}
    return batch | {name: real for name, real in found.items() if real is not None}
