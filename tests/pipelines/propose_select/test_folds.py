"""Folds of training questions: groups stay together, sizes are similar, the seed decides."""

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.propose_select.folds import folds_of

ROWS = [{"id": f"{country}/{n}"} for country in "ABCDEFGHIJ" for n in range(1 + ord(country) % 3)]


def test_a_group_is_in_one_fold_and_folds_are_of_similar_size():
  folds = folds_of(ROWS, 3, 0)
  of = {}
  for row, fold in zip(ROWS, folds, strict=True):
    assert of.setdefault(row["id"][0], fold) == fold
  sizes = np.bincount(folds, minlength=3)
  assert sizes.sum() == len(ROWS) and sizes.max() - sizes.min() <= 1


def test_the_seed_decides_and_the_order_of_the_rows_does_not():
  first = folds_of(ROWS, 3, 0)
  np.testing.assert_array_equal(first, folds_of(ROWS, 3, 0))
  assert any((first != folds_of(ROWS, 3, seed)).any() for seed in range(1, 5))
  reversed_twice = folds_of(ROWS[::-1], 3, 0)[::-1]
  np.testing.assert_array_equal(first, reversed_twice)


def test_ids_without_groups_and_rows_without_ids_are_groups_of_their_own():
  rows = [{"id": f"q{n}"} for n in range(6)] + [{} for _ in range(6)]
  assert np.bincount(folds_of(rows, 4, 0)).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("count, message", [(1, "needs at least 2"), (11, "are of 10 groups")])
def test_mistakes(count, message):
  with pytest.raises(UserError, match=message):
    folds_of(ROWS, count, 0)
