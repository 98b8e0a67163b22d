"""Rank classification: normalisations by hand."""

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.evaluation.rank_classification import rank
from frozen_jax.models.choice_scoring import ChoiceQuestion


def test_normalisations_by_hand():
  questions = [
    ChoiceQuestion(Prompt([1]), [[2], [3, 4], [5, 6, 7]], [9, 8, 2], (1,)),
    ChoiceQuestion(Prompt([1]), [[2], [3]], [1, 2], (0, 1)),
    ChoiceQuestion(Prompt([1]), [[2], [3]], [1, 1]),
  ]
  likely = [np.array([-2.0, -3.0, -4.2]), np.array([-5.0, -5.0]), np.array([-2.0, -1.0])]
  assert rank(questions, likely).predicted == [0, 0, 1]  # of equals the first
  assert rank(questions, likely).correct == [False, True, False]
  assert rank(questions, likely).accuracy == pytest.approx(100 / 3)
  assert rank(questions, likely, "tokens").predicted[0] == 2  # -2, -1.5, -1.4
  assert rank(questions, likely, "bytes").predicted == [0, 1, 1]  # -0.22, -0.375, -2.1
  assert rank([], []).accuracy == 0.0
  with pytest.raises(UserError, match="'mean' is not known; give one of sum, tokens, bytes"):
    rank(questions, likely, "mean")
