"""Prompts of mixed lengths as few batch shapes: sorted by length, padded on the left."""

from collections.abc import Iterator, Sequence

import numpy as np

from frozen_jax.core.types import Prompt
from frozen_jax.text.padding import beside, padded, power_of_two

_STEP = 16  # lengths are rounded up to a multiple of this


def size_class(length: int) -> int:
  """The width to which a prompt is padded: 16, 32, 48, 64, 96, 128, 192, ..."""
  whole = power_of_two(length, _STEP)
  return whole * 3 // 4 if whole > 32 and length <= whole * 3 // 4 else whole


def left_padded(
  prompts: Sequence[Prompt], batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """Yields (indices of the prompts, the arrays of `core.types.Prompts`).

  B is always `batch_size` (or, for fewer prompts, the power of two that holds them); the last
  batch is filled up with empty rows behind the given indices. T is a multiple of 16.
  """
  order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
  rows = min(batch_size, power_of_two(len(prompts)))
  for start in range(0, len(order), rows):
    chosen = order[start : start + rows]
    these = [prompts[index] for index in chosen]
    longest = max(len(prompt.tokens) for prompt in these)
    width = -(-longest // _STEP) * _STEP
    tokens, mask = padded([prompt.tokens for prompt in these], width, rows, left=True)
    yield chosen, {"tokens": tokens, "mask": mask, **beside(these, rows)}
