"""Gains that a config states, over several seeds: paired by question and by seed."""

import json

import numpy as np
import pytest

from frozen_jax.evaluation.gains import Gain
from frozen_jax.run.results.gains import gain_records
from frozen_jax.tools import compare
from tests.tools.run_records import config, predictions, record, write_run

STATED = [Gain("the second pass", "finetune", "prompt"), Gain("all", "finetune", "nowhere")]
KINDS = {"1": "near", "2": "far", "3": "near", "4": "far"}


def answers(right, losses, before, losses_before):
  """Rows of predictions.jsonl of the rows `prompt` (before) and `finetune`."""
  own, other = predictions(right), predictions(before)
  return [
    row
    | {"kind": KINDS[row["id"]], "loss": loss, "targets": 1 + (row["id"] == "4")}
    | {"predictions": {"prompt": old["prediction"]}, "losses": {"prompt": old_loss}}
    for row, old, loss, old_loss in zip(own, other, losses, losses_before, strict=True)
  ]


def with_gains(seed, rows):
  """A record whose gains are those of the rows."""
  others = [
    row | {"prediction": row["predictions"]["prompt"], "loss": row["losses"]["prompt"]}
    for row in rows
  ]
  gains = gain_records(STATED, {"finetune": rows, "prompt": others})
  return record(seed, gains=gains)


ROWS = [
  answers("124", (1.0, 1.0, 2.0, 0.5), "1", (1.0, 2.0, 2.0, 1.5)),
  answers("1234", (0.5, 1.5, 1.0, 0.5), "13", (0.5, 2.5, 1.0, 1.0)),
]


@pytest.fixture
def runs(tmp_path):
  return [
    write_run(tmp_path / f"rec-{seed}", with_gains(seed, rows), config(seed), rows)
    for seed, rows in enumerate(ROWS)
  ]


def test_they_are_paired_over_questions_and_seeds(as_json, runs):
  (group,) = as_json(*runs)["groups"]
  assert [(one["what"], one["kind"]) for one in group["gains"]] == [
    ("the second pass", kind) for kind in ("", "far", "near")
  ]
  whole, far, near = group["gains"]
  assert (whole["row"], whole["against"]) == ("finetune", "prompt")
  # Of four questions two and two are gained: both times those of kind "far".
  assert whole["exact_match"] == {"n": 2, "standard_error": None} | {
    key: pytest.approx(value)
    for key, value in zip(("mean", "low", "high"), interval([[0, 1, 0, 1]] * 2), strict=True)
  }
  assert far["exact_match"]["mean"] == 100.0 and near["exact_match"]["mean"] == 0.0
  # Per target: question 4 has two. Seed 0: (0 - 1 + 0 - 2 * 1) / 5, seed 1: (-1 - 2 * 0.5) / 5.
  assert whole["loss"]["mean"] == pytest.approx((-3 / 5 - 2 / 5) / 2)
  assert far["loss"]["mean"] == pytest.approx((-3 / 3 - 2 / 3) / 2)
  assert near["loss"] == {"n": 2, "mean": 0.0, "standard_error": None, "low": 0.0, "high": 0.0}
  assert whole["loss"]["low"] < whole["loss"]["mean"] < whole["loss"]["high"]


def interval(values):
  """(mean, low, high) of equal runs: nothing but the questions is drawn."""
  values = 100 * np.array(values, float)
  error = 1.959964 * values[0].std(ddof=1) / values.shape[1] ** 0.5
  return values.mean(), values.mean() - error, values.mean() + error


def test_one_run_has_those_of_its_record(as_json, runs):
  (group,) = as_json(runs[0])["groups"]
  (stated,) = json.loads((runs[0] / "results.json").read_text())["gains"]
  whole = group["gains"][0]
  assert whole["loss"]["low"] == stated["loss"]["difference_low"] and whole["loss"]["n"] == 1
  assert [one["kind"] for one in group["gains"]] == ["", "far", "near"]


def test_they_are_in_every_format(runs, capsys):
  texts = {}
  for name in ("terminal", "markdown", "csv"):
    assert compare.main([*map(str, runs), f"--format={name}"]) == 0
    texts[name] = capsys.readouterr().out
  assert "gains, with 95% intervals paired over questions and seeds" in texts["terminal"]
  assert max(map(len, texts["terminal"].splitlines())) <= 100
  for name in ("terminal", "markdown"):
    assert "the second pass: finetune over prompt" in texts[name]
    assert "the second pass, near" in texts[name] and "-0.500 (" in texts[name]
  assert "finetune - prompt,exact_match_gain,2,50.0,," in texts["csv"]
  assert 'finetune - prompt,"loss_gain, near",2,0.0,,0.0,0.0' in texts["csv"]


def test_answers_that_are_no_longer_there_give_a_note(as_json, runs):
  (runs[1] / "predictions.jsonl").unlink()
  found = as_json(*runs)
  assert found["groups"][0]["gains"] == []
  assert found["notes"] == [
    "no gains over the runs of rec-0, rec-1: rec-1 has no predictions.jsonl"
  ]


def test_a_row_that_one_run_lacks_gives_a_note(as_json, runs):
  rows = [{**row, "predictions": {}} for row in ROWS[1]]
  (runs[1] / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = as_json(*runs)
  assert found["groups"][0]["gains"] == [] and "not every run of rec-0, rec-1" in found["notes"][0]


@pytest.mark.parametrize(
  "gains", [[{"what": "x"}], [{"what": "x", "row": "a", "against": "b", "loss": 3}], "x", [3]]
)
def test_damaged_gains_are_an_error(tmp_path, gains, capsys):
  folder = write_run(tmp_path / "run", record(0, gains=gains))
  assert compare.main([str(folder)]) == 2
  assert "is damaged" in capsys.readouterr().err
