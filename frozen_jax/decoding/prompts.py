"""Prompts of mixed lengths as few batch shapes: sorted by length, padded on the left."""

from collections.abc import Iterator, Sequence

import numpy as np

_STEP = 16  # lengths are rounded up to a multiple of this


def left_padded(
  prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
  """Yields (indices of the prompts, tokens int32 [B, T], mask int32 [B, T]).

  B is always `batch_size` (or, for fewer prompts, the power of two that holds them); the last
  batch is filled up with empty rows behind the given indices. T is a multiple of 16.
  """
  order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
  rows = min(batch_size, 1 << max(len(prompts) - 1, 0).bit_length())
  for start in range(0, len(order), rows):
    chosen = order[start : start + rows]
    longest = max(len(prompts[index]) for index in chosen)
    width = -(-longest // _STEP) * _STEP
    tokens = np.zeros((rows, width), np.int32)
    mask = np.zeros((rows, width), np.int32)
    for row, index in enumerate(chosen):
      length = len(prompts[index])
      tokens[row, width - length :] = prompts[index]
      mask[row, width - length :] = 1
    yield chosen, tokens, mask
