"""Rows of token ids of mixed lengths as arrays of few shapes."""

from collections.abc import Sequence

import numpy as np

from frozen_jax.core.types import Prompt

_LEAST = 16  # positions of an encoder's text


def power_of_two(count: int, least: int = 1) -> int:
  """The smallest power of two that is neither below `count` nor below `least`, itself one."""
  return max(least, 1 << max(count - 1, 0).bit_length())


def few_sizes(count: int, most: int) -> int:
  """The smallest of 1, 4, 16, ... that is not below `count`, or `most`, whichever is less.

  So that what is compiled for each size is compiled for few.
  """
  size = power_of_two(count)
  return min(size if size.bit_length() % 2 else 2 * size, most)


def padded(
  rows: Sequence[Sequence[int]], width: int, size: int | None = None, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask, int32 [B, width], padded on the right or the left.

  B is `size` (default: as many as rows); rows beyond the given ones are empty.
  """
  ids, mask = (np.zeros((size or len(rows), width), np.int32) for _ in range(2))
  for index, row in enumerate(rows):
    start = width - len(row) if left else 0
    ids[index, start : start + len(row)] = row
    mask[index, start : start + len(row)] = 1
  return ids, mask


def beside(prompts: Sequence[Prompt], size: int | None = None) -> dict[str, np.ndarray]:
  """The arrays of `core.types.Prompts` besides tokens and mask, as far as the prompts have them.

  The width of the encoder's text is a power of two, at least 16. B as in `padded`.
  """
  arrays = {}
  if prompts[0].encoder_tokens is not None:
    texts = [prompt.encoder_tokens or () for prompt in prompts]
    width = power_of_two(max(map(len, texts)), _LEAST)
    arrays["encoder_tokens"], arrays["encoder_mask"] = padded(texts, width, size)
  if prompts[0].task is not None:
    arrays["task"] = np.zeros(size or len(prompts), np.int32)
    arrays["task"][: len(prompts)] = [prompt.task for prompt in prompts]
  return arrays
