"""Several runs compared: groups of seeds, means and standard errors, differences, refusals."""

import csv
import hashlib
import json
import math

import numpy as np
import pytest

from frozen_jax.evaluation.intervals import paired_difference
from frozen_jax.tools import compare
from tests.tools.run_records import UNITS, config, predictions, record, write_run


def titles(found):
  return [group["title"] for group in found["groups"]]


def test_seeds_are_a_mean_with_its_standard_error(as_json, seeds):
  found = as_json(*seeds)
  (group,) = found["groups"]
  assert group["title"] == "rec-0, rec-1, rec-2"
  (table,) = group["tables"]
  assert (table["test"], table["held_out"]) == ("world_facts/test", False)
  assert list(table["rows"]) == ["zero_shot", "prompt", "finetune"]
  last = table["rows"]["finetune"]
  assert list(last) == ["exact_match", "loss"]
  none = {"low": None, "high": None}
  # 50, 54, 58 have the standard deviation 4; 1, 2, 3 have 1.
  error = pytest.approx(4 / math.sqrt(3))
  assert last["exact_match"] == {"n": 3, "mean": 54.0, "standard_error": error} | none
  assert last["loss"]["standard_error"] == pytest.approx(1 / math.sqrt(3))
  assert table["rows"]["prompt"]["loss"] == {"n": 3, "mean": 1.5, "standard_error": 0.0} | none
  first, second = group["differences"]
  assert (first["row"], first["against"]) == ("finetune", "zero_shot")
  assert first["estimate"] == {"n": 3, "mean": 14.0, "standard_error": error} | none
  assert (second["against"], second["estimate"]["mean"]) == ("prompt", 4.0)
  assert found["differences"] == found["notes"] == []
  assert found["units"] == UNITS


def test_one_run_has_the_intervals_of_its_record(as_json, tmp_path):
  (group,) = as_json(write_run(tmp_path / "one", record(7)))["groups"]
  last = group["tables"][0]["rows"]["finetune"]
  single = {"n": 1, "standard_error": None}
  assert last["exact_match"] == single | {"mean": 60.0, "low": 55.0, "high": 64.0}
  assert last["loss"] == single | {"mean": 1.25, "low": None, "high": None}
  estimates = [one["estimate"] for one in group["differences"]]
  assert estimates[0] == single | {"mean": 20.0, "low": 17.0, "high": 22.0}


def test_the_origin_of_each_run(as_json, tmp_path, seeds):
  origin = ("created", "version", "commit", "command", "device", "seed")
  folder = write_run(tmp_path / "plain", {k: v for k, v in record(5).items() if k != "commit"})
  first, second = as_json(seeds[2], folder)["groups"]
  expected = {name: record(2)[name] for name in origin}
  assert first["runs"] == [{"name": "rec-2", "path": str(seeds[2])} | expected]
  assert second["runs"][0]["commit"] is None and second["runs"][0]["seed"] == 5


@pytest.mark.parametrize(
  "changes, groups",
  [
    ({"mesh": {"data": 8}, "evaluation": "x", "predict": {}, "export": {}}, 1),
    ({"train": {"steps": 400}}, 2),
    ({"stages": {"prompt": {"seed": 3}}}, 2),
  ],
)
def test_a_group_differs_in_its_seed_only(as_json, tmp_path, changes, groups):
  runs = [
    write_run(tmp_path / "a", record(0), config(0)),
    write_run(tmp_path / "b", record(1), config(1, **changes)),
  ]
  assert len(as_json(*runs)["groups"]) == groups


@pytest.mark.parametrize(
  "changes, groups",
  [
    ({}, 1),
    ({"method": "lora"}, 2),
    ({"model": "gpt2"}, 2),
    ({"test": "natural_questions/test"}, 2),
  ],
)
def test_without_configs_the_records_decide(as_json, tmp_path, changes, groups):
  runs = [
    write_run(tmp_path / "a", record(0)),
    write_run(tmp_path / "b", record(1, **changes)),
  ]
  found = as_json(*runs)
  assert len(found["groups"]) == groups
  assert any("without config.json" in note for note in found["notes"]) == (groups == 1)


def test_a_seed_that_comes_again_begins_another_group(as_json, tmp_path, seeds):
  again = write_run(tmp_path / "again", record(1), config(1))
  other = write_run(tmp_path / "other", record(0), config(0))
  assert titles(as_json(*seeds, again, other)) == ["rec-0, rec-1, rec-2", "again, other"]


def test_names_that_are_not_unique_become_paths(as_json, tmp_path):
  runs = [write_run(tmp_path / name / "run", record(0, method=name)) for name in "ab"]
  assert titles(as_json(*runs)) == [str(run) for run in runs]


def test_evaluations_have_the_config_of_their_workdir(as_json, seeds):
  folders = [
    write_run(run / "evaluations" / "nq", record(seed, 30.0 + seed, test="nq/test"))
    for seed, run in enumerate(seeds)
  ]
  (group,) = as_json(*folders)["groups"]
  assert group["title"] == "rec-0/nq, rec-1/nq, rec-2/nq"
  assert group["tables"][0]["rows"]["finetune"]["exact_match"]["mean"] == 31.0
  (seeds[2] / "config.json").write_text(json.dumps(config(2, train={"steps": 1})))
  assert titles(as_json(*folders)) == ["rec-0/nq, rec-1/nq", "rec-2/nq"]
  assert titles(as_json(seeds[0], folders[1])) == ["rec-0", "rec-1/nq"]


def test_an_evaluation_of_seeds_stands_for_those_of_them_all(as_json, tmp_path):
  place = tmp_path / "run" / "evaluations" / "nq"
  place.mkdir(parents=True)  # of the joined tables, without a record
  for seed in (0, 1):
    folder = write_run(tmp_path / "run" / f"seed_{seed}", record(seed), config(seed))
    write_run(folder / "evaluations" / "nq", record(seed, 30.0 + seed, test="nq/test"))
  (group,) = as_json(place)["groups"]
  assert group["title"] == "run/seed_0/nq, run/seed_1/nq"
  assert group["tables"][0]["rows"]["finetune"]["exact_match"]["mean"] == 30.5


def test_an_evaluation_is_no_seed_of_another(as_json, seeds):
  """Two evaluations of one workdir may differ in anything: their configs are not stored."""
  folders = [write_run(seeds[i] / "evaluations" / name, record(i)) for i, name in enumerate("ab")]
  assert titles(as_json(*folders)) == ["rec-0/a", "rec-1/b"]


def test_a_file_is_a_run_with_its_neighbours_only_as_results_json(as_json, seeds):
  assert titles(as_json(*[run / "results.json" for run in seeds])) == ["rec-0, rec-1, rec-2"]
  copy = seeds[0].parent / "copy.json"
  copy.write_text(json.dumps(record(4)))
  assert titles(as_json(seeds[0], copy)) == ["rec-0", "copy.json"]


def test_the_difference_between_groups_is_paired_by_question(as_json, tmp_path):
  first = write_run(tmp_path / "a", record(0, method="lora"), rows=predictions("1"))
  second = write_run(tmp_path / "b", record(0), rows=predictions("321", ids="4321"))
  found = as_json(first, second)
  (one,) = found["differences"]
  assert (one["group"], one["against_group"]) == ("b", "a")
  assert (one["row"], one["against"]) == ("finetune", "finetune")
  # Question by question: 1 right in both, 2 and 3 in the second alone, 4 in none.
  bounds = paired_difference(np.zeros(4), np.array([0.0, 100.0, 100.0, 0.0]))
  assert one["estimate"] == {
    "n": 1,
    "mean": 50.0,
    "standard_error": None,
    "low": bounds["difference_low"],
    "high": bounds["difference_high"],
  }
  assert bounds["difference_low"] < 50 < bounds["difference_high"]
  assert found["notes"] == []


def test_the_difference_between_groups_of_seeds_is_of_their_means(as_json, tmp_path):
  runs = [
    write_run(tmp_path / "a0", record(0), config(0), predictions("1")),
    write_run(tmp_path / "a1", record(1), config(1), predictions("")),
    write_run(tmp_path / "b0", record(0), config(0, init_from="x"), predictions("123")),
  ]
  (one,) = as_json(*runs)["differences"]
  # 3 of 4 against the mean of 1 of 4 and 0 of 4.
  assert (one["estimate"]["mean"], one["estimate"]["n"]) == (62.5, None)
  bounds = paired_difference(np.array([50.0, 0, 0, 0]), np.array([100.0, 100, 100, 0]))
  assert one["estimate"]["low"] == bounds["difference_low"]


@pytest.mark.parametrize(
  "rows, reason",
  [
    (predictions("1", ids="123"), "and compare that folder"),  # the record is of four
    (predictions("1", question="The capital of {}?"), "they answered other questions"),
    (predictions("1") + predictions("2", ids="2"), "b has the question with id 2 twice"),
    ([], "b has no predictions"),
    (None, "b has no predictions.jsonl"),
  ],
)
def test_without_the_same_questions_there_is_no_difference(as_json, tmp_path, rows, reason):
  first = write_run(tmp_path / "a", record(0, method="lora"), rows=predictions("1"))
  second = write_run(tmp_path / "b", record(0), rows=rows)
  found = as_json(first, second)
  assert found["differences"] == []
  (note,) = found["notes"]
  assert note.startswith("no difference between b and ") and note.endswith(reason)


def test_without_exact_match_there_is_no_difference(as_json, tmp_path):
  of_text = {"metrics": {"loss": 2.0}, "paired": {}}
  runs = [
    write_run(tmp_path / name, record(0, method=name, **of_text), rows=predictions("1"))
    for name in "ab"
  ]
  found = as_json(*runs)
  assert found["differences"] == []
  assert ["no exact match of single questions" in note for note in found["notes"]] == [True, True]


def test_held_out_data_has_tables_of_its_own(as_json, output, tmp_path):
  runs = [
    write_run(
      tmp_path / f"r{seed}",
      record(seed, held_out={"copa": {"zero_shot": {"score": 40.0}, "finetune": {"score": score}}}),
      config(seed),
    )
    for seed, score in enumerate((50.0, 60.0))
  ]
  _, table = as_json(*runs)["groups"][0]["tables"]
  assert (table["test"], table["held_out"]) == ("copa", True)
  assert list(table["rows"]) == ["zero_shot", "finetune"]
  # 50 and 60: standard deviation 5 * sqrt(2), divided by sqrt(2).
  score = table["rows"]["finetune"]["score"]
  assert (score["mean"], score["standard_error"]) == (55.0, pytest.approx(5.0))
  assert "held-out data: copa" in output(*runs)
  lines = list(csv.DictReader(output(*runs, "--format=csv").splitlines()))
  assert {one["metric"] for one in lines if one["test"] == "copa"} == {"score"}


def test_doubtful_runs_are_noted(as_json, tmp_path):
  other = record(1, frozen_fingerprint="beef", frozen_unchanged=False)
  other["metrics"]["examples"] = 3
  runs = [
    write_run(tmp_path / "a", record(0), config(0)),
    write_run(tmp_path / "b", other, config(1)),
  ]
  assert as_json(*runs)["notes"] == [
    "b: the frozen weights changed during the run",
    "a, b: the frozen weights of the runs are not the same",
    "a, b: the runs were scored on different numbers of examples",
  ]


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "is missing"),
    ("{", "is damaged"),
    ("[]", "is damaged"),
    (json.dumps({k: v for k, v in record(0).items() if k != "format"}), "has format 1"),
    (json.dumps(record(0, format=3)), "has format 3"),
    (json.dumps(record(0, table="zero_shot  50")), "is damaged"),
    (json.dumps(record(0, rows={})), "is damaged (KeyError: 'prompt')"),
    (json.dumps(record(0, metrics={"loss": "high"})), "is damaged"),
    (json.dumps(record(0, units=["percent"])), "is damaged (TypeError: units"),
    (json.dumps(record([1])), "is damaged (TypeError: seed"),
    (json.dumps(record(0, method={})), "is damaged (TypeError: method"),
    (json.dumps(record(True)), "is damaged (TypeError: seed is True"),
    (json.dumps(record(0, metrics={"exact_match": "50"})), "is damaged (TypeError: exact_match"),
    (json.dumps(record(0, metrics={"exact_match": True})), "is damaged (TypeError: exact_match"),
    (json.dumps(record(0, format="2")), "has format '2'"),
    (json.dumps(record(0, format=True)), "has format True"),
    (json.dumps(config(0)), "is no record of a run"),
    ("{}", "is no record of a run"),
  ],
)
def test_a_record_that_cannot_be_read(error, tmp_path, text, message):
  folder = write_run(tmp_path / "run", record(0))
  if text is None:
    (folder / "results.json").unlink()
  else:
    (folder / "results.json").write_text(text)
  assert error(folder).startswith(f"error: {folder / 'results.json'} {message}")


def test_a_config_in_place_of_a_record(error, tmp_path):
  folder = write_run(tmp_path / "run", record(0), config(0))
  message = f"error: {folder / 'config.json'} is no record of a run; give a workdir"
  assert error(folder / "config.json").startswith(message)


def test_figures_that_are_no_numbers_are_left_out_and_noted(as_json, tmp_path):
  runs = [
    write_run(tmp_path / name, record(seed, loss=loss), config(seed))
    for name, seed, loss in (("a", 0, 1.5), ("b", 1, math.nan), ("c", 2, 2.5))
  ]
  found = as_json(*runs)
  (group,) = found["groups"]
  row = group["tables"][0]["rows"]["finetune"]
  assert (row["loss"]["n"], row["loss"]["mean"]) == (2, 2.0) and row["exact_match"]["n"] == 3
  assert "b: loss of finetune is nan, and in no mean" in found["notes"]


def test_a_folder_that_is_none(error, tmp_path):
  assert error(tmp_path / "none").startswith(f"error: {tmp_path / 'none'} is missing")


@pytest.mark.parametrize("line", ["{", '{"id": "1"}', '{"id": "1", "input": "a", "prediction": 3}'])
def test_damaged_predictions(error, tmp_path, line):
  runs = [
    write_run(tmp_path / name, record(0, method=name), rows=predictions("1")) for name in "ab"
  ]
  with (runs[1] / "predictions.jsonl").open("a") as file:
    file.write(line)
  assert error(*runs).startswith(f"error: {runs[1] / 'predictions.jsonl'}, line 5")


@pytest.mark.parametrize(
  "rows",
  [
    [{"id": "1", "input": "Who?", "prediction": "Ada"}],  # questions without answers
    [{"id": "1", "input": "Who?", "prediction": "Ada", "answers": []}],
    predictions("12", ids="12"),  # with answers, but not those that were scored
  ],
)
def test_predictions_that_a_later_predict_replaced(as_json, tmp_path, rows):
  """The figures of the records are compared; differences by question cannot be."""
  first = write_run(tmp_path / "a", record(0, method="a"), rows=predictions("1"))
  second = write_run(tmp_path / "b", record(0, 70.0, method="b"), rows=rows)
  found = as_json(first, second)
  assert [group["title"] for group in found["groups"]] == ["a", "b"]
  assert found["groups"][1]["tables"][0]["rows"]["finetune"]["exact_match"]["mean"] == 70.0
  assert found["differences"] == []
  (note,) = found["notes"]
  assert "predictions.jsonl of b no longer holds what was scored" in note
  assert "--mode=predict" in note and "--mode=evaluate" in note


def test_as_many_answers_of_a_later_predict_to_questions_with_answers(as_json, tmp_path):
  """They have other inputs or the same ones: the record knows the file that it was made of."""
  rows = predictions("12")
  text = "".join(json.dumps(one) + "\n" for one in rows).encode()
  scored = record(0, predictions_sha256=hashlib.sha256(text).hexdigest())
  first = write_run(tmp_path / "first", scored, config(0), rows)
  second = write_run(tmp_path / "second", scored, config(0, other=1), rows)
  assert len(as_json(first, second)["differences"]) == 1
  for later in (predictions("1234"), predictions("12", question="And {}?")):
    (second / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in later))
    found = as_json(first, second)
    assert found["differences"] == []
    assert any("the answers of a later --mode=predict" in note for note in found["notes"])


def test_a_run_given_twice(error, seeds):
  assert "is given twice" in error(seeds[0], seeds[1], seeds[0] / "results.json")


def test_runs_without_a_row_or_a_metric_in_common(error, tmp_path):
  first = write_run(tmp_path / "a", record(0))
  table = {"rows": ["reader"], "metrics": "reader", "baseline": "reader"}
  changes = {"rows": {}, "table": table, "paired": {}}
  second = write_run(tmp_path / "b", record(0, **changes))
  message = error(first, second)
  assert "no row in common (a: finetune, prompt, zero_shot; b: reader)" in message
  only = {"metrics": {"f1": 1.0}, "baseline": {"name": "zero_shot", "f1": 1.0}}
  third = write_run(tmp_path / "c", record(0, **only, rows={"prompt": {"f1": 2.0}}, paired={}))
  assert "no metric in common (a: exact_match, loss; c: f1)" in error(first, third)


def test_wrong_arguments(error, seeds):
  assert "--format" in error(seeds[0], "--format=xml")
  assert "RUN" in error()


def test_help(capsys):
  with pytest.raises(SystemExit) as exit:
    compare.main(["--help"])
  assert exit.value.code == 0
  out = capsys.readouterr().out
  assert "examples:\n  python -m frozen_jax.tools.compare" in out
  for word in ("standard error", "evaluations/NAME", *compare.OUTPUT_FORMATS):
    assert word in out
