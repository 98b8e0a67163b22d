"""Gains of one row over another: what they are of, their intervals, and how they are named."""

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.gains import (
  EXACT_MATCH,
  LOSS,
  Gain,
  QuestionScores,
  gain_intervals,
  question_gains,
  stated_gains,
)

STAGES = ("late_prompt", "control", "second_pass")


@pytest.mark.parametrize(
  "text, gain",
  [
    (
      "the second pass: second_pass over control",
      Gain("the second pass", "second_pass", "control"),
    ),
    ("control over late_prompt", Gain("control", "control", "late_prompt")),
    ("all: second_pass over zero_shot", Gain("all", "second_pass", "zero_shot")),
  ],
)
def test_a_gain_is_stated_in_words(text, gain):
  assert stated_gains((text,), STAGES) == (gain,)


@pytest.mark.parametrize(
  "text, said",
  [
    ("second_pass - control", "write 'WHAT: ROW over ROW'"),
    (3, "write 'WHAT"),
    ("second_pass over contrl", "no row contrl; there are late_prompt, control, second_pass, zero"),
    ("finetune over control", "no row finetune"),
  ],
)
def test_another_form_and_rows_that_are_not_there(text, said):
  with pytest.raises(UserError, match=said):
    stated_gains((text,), STAGES)


def test_the_loss_gained_is_the_difference_of_losses_per_target():
  """Not the mean over questions: one with many targets counts as often as it has some."""
  against = [QuestionScores(0.0, 4.0, 1), QuestionScores(100.0, 3.0, 3)]
  row = [QuestionScores(100.0, 1.0, 1), QuestionScores(100.0, 3.0, 3)]
  found = question_gains(row, against)
  assert found[EXACT_MATCH].tolist() == [100.0, 0.0]
  assert found[LOSS].mean() == pytest.approx((1 + 3) / 4 - (4 + 3) / 4)


@pytest.mark.parametrize("targets", [(2, 2), (1, 9)])
def test_the_interval_of_a_loss_is_that_of_a_ratio(targets):
  rng = np.random.default_rng(0)
  counts = rng.choice(targets, 400)
  a, b = (rng.gamma(2.0, counts) for _ in range(2))
  row = [QuestionScores(0.0, *one) for one in zip(b, counts, strict=True)]
  against = [QuestionScores(0.0, *one) for one in zip(a, counts, strict=True)]
  found = gain_intervals(question_gains(row, against))[LOSS]
  drawn = [rng.integers(0, 400, 400) for _ in range(4000)]
  ratios = [(b - a)[one].sum() / counts[one].sum() for one in drawn]
  low, high = np.quantile(ratios, [0.025, 0.975])
  spread = high - low
  assert found["difference"] == pytest.approx((b - a).sum() / counts.sum())
  assert found["difference_low"] == pytest.approx(low, abs=0.08 * spread)
  assert found["difference_high"] == pytest.approx(high, abs=0.08 * spread)


@pytest.mark.parametrize(
  "other", [QuestionScores(0.0, 1.0, 3), QuestionScores(0.0)], ids=["other tokens", "no loss"]
)
def test_losses_that_cannot_be_compared_are_not(other):
  found = question_gains([QuestionScores(100.0, 1.0, 2)], [other])
  assert list(found) == [EXACT_MATCH]
