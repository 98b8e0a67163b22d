"""Prompts of mixed lengths as few batch shapes: sorted by length, padded on the left."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

from frozen_jax.core.types import Prompt
from frozen_jax.text.padding import extra_inputs, pad_sequences, power_of_two

MAX_LENGTH_RATIO = 4  # prompts more than this many times as long as others get another cache
_STEP = 16  # lengths are rounded up to a multiple of this


def length_bucket(length: int) -> int:
  """The width to which a prompt is padded: 16, 32, 48, 64, 96, 128, 192, ..."""
  width = power_of_two(length, _STEP)
  return width * 3 // 4 if width > 32 and length <= width * 3 // 4 else width


def length_buckets(prompts: Sequence[Prompt]) -> dict[int, list[int]]:
  """The indices of the prompts by the width to which they are padded."""
  buckets: dict[int, list[int]] = collections.defaultdict(list)
  for index, prompt in enumerate(prompts):
    buckets[length_bucket(len(prompt.tokens))].append(index)
  return dict(buckets)


def group_buckets(
  buckets: dict[int, list[int]], prompts_for_all_rows: int
) -> Iterator[dict[int, list[int]]]:
  """The buckets, longest first, in groups that share a cache.

  In a group none is more than `MAX_LENGTH_RATIO` times as long as another, unless the prompts are
  no more than `prompts_for_all_rows`: separately they would leave rows free. So many short prompts
  do not pay for the cache of a few long ones.
  """
  group: dict[int, list[int]] = {}
  for width in sorted(buckets, reverse=True):
    count = sum(map(len, group.values())) + len(buckets[width])
    if group and MAX_LENGTH_RATIO * width < next(iter(group)) and count > prompts_for_all_rows:
      yield group
      group = {}
    group[width] = buckets[width]
  if group:
    yield group


def left_padded(
  prompts: Sequence[Prompt], batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """Yields (indices of the prompts, the arrays of `core.types.Prompts`).

  B is always `batch_size` (or, for fewer prompts, the power of two that holds them); the last
  batch is filled up with empty rows after the given indices. T is a multiple of 16.
  """
  by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
  rows = min(batch_size, power_of_two(len(prompts)))
  for start in range(0, len(by_length), rows):
    indices = by_length[start : start + rows]
    width = -(-len(prompts[indices[-1]].tokens) // _STEP) * _STEP
    yield indices, left_padded_arrays([prompts[index] for index in indices], width, rows)


def left_padded_arrays(prompts: Sequence[Prompt], width: int, size: int) -> dict[str, np.ndarray]:
  """The arrays of `core.types.Prompts`, [size, width]; rows after the prompts are empty."""
  tokens, mask = pad_sequences([prompt.tokens for prompt in prompts], width, size, left=True)
  return {"tokens": tokens, "mask": mask, **extra_inputs(prompts, size)}
