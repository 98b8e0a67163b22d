"""Folds of the training questions: what is proposed to a question comes from a prompt that was not
tuned on it, so that proposals in training look like those in a test.

Questions whose ids agree up to their first `/` (all those about one country) share a fold, as a
test set holds out all of them.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.seeds import seed32


def folds_of(examples: Sequence[dict[str, Any]], count: int, seed: int) -> np.ndarray:
  """The fold of each example, int32 [N]; groups are spread so that folds are of nearly one size.

  Raises UserError for less than two folds, and where there are fewer groups than folds.
  """
  if count < 2:
    raise UserError(f"candidates.folds is {count}; out of fold needs at least 2")
  names = [str(one.get("id", number)).partition("/")[0] for number, one in enumerate(examples)]
  groups, of, sizes = np.unique(names, return_inverse=True, return_counts=True)
  if len(groups) < count:
    raise UserError(
      f"candidates.folds is {count}, but the training questions are of {len(groups)} groups (ids up"
      " to their first /); lower it or give more questions"
    )
  chance = [zlib.crc32(name.encode(), seed32(seed)) for name in groups]
  fold_of_group, filled = np.zeros(len(groups), np.int32), np.zeros(count, np.int64)
  for group in sorted(range(len(groups)), key=lambda at: (-sizes[at], chance[at])):
    fold_of_group[group] = np.argmin(filled)
    filled[fold_of_group[group]] += sizes[group]
  return fold_of_group[of]
