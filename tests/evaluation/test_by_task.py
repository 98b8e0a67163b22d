"""Scores of rows -> templates -> data sets -> the whole, with equal weights at each level."""

import json

import pytest

from frozen_jax.evaluation.by_task import RowScores, scores_by_task

ROWS = [
  *(RowScores("paws", "yes_or_no", {"accuracy": value}) for value in (100.0, 0.0, 100.0, 100.0)),
  RowScores("paws", "true_or_false", {"accuracy": 0.0}),
  RowScores("paws", "swapped", {"accuracy": 100.0}),
  RowScores("cosmos", "choose", {"accuracy": 100.0}),
  RowScores("cosmos", "write", {"exact_match": 0.0, "f1": 40.0, "rouge_l": 30.0}),
  RowScores("cosmos", "write", {"exact_match": 100.0, "f1": 100.0, "rouge_l": 100.0}),
]


def test_by_hand():
  table = scores_by_task(ROWS)
  assert table["rows"] == 9
  paws, cosmos = table["datasets"]["paws"], table["datasets"]["cosmos"]
  assert paws["rows"] == 6
  assert paws["templates"]["yes_or_no"] == {"rows": 4, "score": 75.0, "accuracy": 75.0}
  assert paws["mean"] == pytest.approx({"score": 175 / 3, "accuracy": 175 / 3})
  assert paws["median"] == {"score": 75.0, "accuracy": 75.0}
  assert cosmos["templates"]["write"] == {
    "rows": 2,
    "score": 65.0,
    "exact_match": 50.0,
    "f1": 70.0,
    "rouge_l": 65.0,
  }
  # A choice where there are choices, ROUGE-L otherwise; other figures over the templates with them.
  assert cosmos["mean"] == {
    "score": 82.5,
    "accuracy": 100.0,
    "exact_match": 50.0,
    "f1": 70.0,
    "rouge_l": 65.0,
  }
  assert table["mean"]["score"] == pytest.approx((175 / 3 + 82.5) / 2)
  assert table["median"]["score"] == pytest.approx((75.0 + 82.5) / 2)
  assert table["mean"]["rouge_l"] == 65.0


def test_the_order_of_rows_does_not_matter_and_all_of_it_is_json():
  text = json.dumps(scores_by_task(ROWS))
  other = json.loads(json.dumps(scores_by_task(reversed(ROWS))))
  assert json.loads(text) == other
  assert list(other["datasets"]) == ["cosmos", "paws"]


def test_nothing_to_show():
  assert scores_by_task([]) == {"rows": 0, "mean": {}, "median": {}, "datasets": {}}


def test_a_row_without_a_score():
  with pytest.raises(ValueError, match="a row of paws has none of accuracy, rouge_l"):
    scores_by_task([RowScores("paws", "", {"f1": 3.0})])
