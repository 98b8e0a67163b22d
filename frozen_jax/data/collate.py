"""Encoded rows as the padded arrays of a batch, of few shapes."""

from collections.abc import Sequence

from frozen_jax.core.types import HostBatch, Prompt
from frozen_jax.data.tasks import Encoded
from frozen_jax.text.padding import extra_inputs, pad_sequences, power_of_two

_MIN_TARGETS = 4


def collate(
  rows: Sequence[Encoded], lengths: Sequence[int], min_targets: int, size: int | None = None
) -> HostBatch:
  """Encoded rows as the arrays of `core.types.Batch`, padded on the right.

  T is the first of `lengths` that holds the longest row, M at least `min_targets`.
  B is `size` (default: as many as rows); rows beyond the given ones are empty.
  """
  width, targets = widths(rows, lengths, min_targets)
  tokens, mask = pad_sequences([row.tokens for row in rows], width, size)
  ids, target_mask = pad_sequences([row.tokens[row.target_start :] for row in rows], targets, size)
  predicting = [range(row.target_start - 1, len(row.tokens) - 1) for row in rows]
  positions, _ = pad_sequences(predicting, targets, size)
  prompts = [Prompt(row.tokens, row.encoder_tokens, row.task) for row in rows]
  return {
    "tokens": tokens,
    "mask": mask,
    "target_positions": positions,
    "target_ids": ids,
    "target_mask": target_mask,
    **extra_inputs(prompts, size),
  }


def widths(rows: Sequence[Encoded], lengths: Sequence[int], min_targets: int) -> tuple[int, int]:
  """T and M of a batch of these rows."""
  length = max(_padded_length(row, lengths) for row in rows)
  return length, max(targets_bucket(max(map(num_targets, rows))), min_targets)


def num_targets(row: Encoded) -> int:
  """How many tokens of a row are targets."""
  return len(row.tokens) - row.target_start


def padded_lengths(row: Encoded, lengths: Sequence[int]) -> tuple[int, int]:
  """To what a row is padded at least, and its text for the encoder."""
  return _padded_length(row, lengths), len(row.encoder_tokens or ())


def _padded_length(row: Encoded, lengths: Sequence[int]) -> int:
  """The first of `lengths` that holds a row."""
  return next(length for length in lengths if length >= len(row.tokens))


def targets_bucket(count: int) -> int:
  """The smallest power of two, at least 4, that is not below `count`."""
  return power_of_two(count, _MIN_TARGETS)
