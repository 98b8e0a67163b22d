"""Padding: rows of token ids of mixed lengths as arrays, in few shapes."""

from collections.abc import Sequence

import numpy as np

from frozen_jax.core.types import Prompt

_MIN_ENCODER_WIDTH = 16  # of a text encoder's input


def power_of_two(count: int, minimum: int = 1) -> int:
  """The smallest power of two that is at least `count` and at least `minimum`, a power of two."""
  return max(minimum, 1 << max(count - 1, 0).bit_length())


def batch_bucket(count: int, maximum: int) -> int:
  """A batch size for `count` rows: the first of 1, 4, 16, ... that holds them, or `maximum`.

  A program is compiled for each batch size, so there are few.
  """
  size = power_of_two(count)
  return min(size if size.bit_length() % 2 else 2 * size, maximum)


def pad_sequences(
  rows: Sequence[Sequence[int] | np.ndarray],
  width: int,
  size: int | None = None,
  *,
  left: bool = False,
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


def extra_inputs(prompts: Sequence[Prompt], size: int | None = None) -> dict[str, np.ndarray]:
  """The arrays of `core.types.Prompts` besides tokens and mask, if the prompts have these inputs.

  The width of the text encoder's input is a power of two, at least 16. B as in `pad_sequences`.
  """
  arrays = {}
  if prompts[0].encoder_tokens is not None:
    texts = [prompt.encoder_tokens or () for prompt in prompts]
    width = power_of_two(max(map(len, texts)), _MIN_ENCODER_WIDTH)
    arrays["encoder_tokens"], arrays["encoder_mask"] = pad_sequences(texts, width, size)
  if prompts[0].task is not None:
    arrays["task"] = np.zeros(size or len(prompts), np.int32)
    arrays["task"][: len(prompts)] = [prompt.task for prompt in prompts]
  return arrays
