"""A second pass only where it is needed: a run's gate, what it leaves out, and where it is kept."""

import dataclasses
import json
import shutil

import pytest

import frozen_jax
from frozen_jax import run
from frozen_jax.config.config_file import load_config
from frozen_jax.config.overrides import override
from frozen_jax.core.errors import UserError
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.run.results.records import table_rows
from frozen_jax.run.settings import with_defaults
from tests.run.conftest import ROOT, SMALL_RECURSION


@pytest.fixture(scope="module")
def neural_config(tiny, files):
  """`neural_config(**{"dotted.key": "value"})`: the neural recursive LM on the same questions."""

  def make(**changes):
    config = with_defaults(load_config(f"{ROOT}/configs/recursive.py:smoke"))
    given = {"model.name": str(tiny), **{key: str(path) for key, path in files.items()}}
    override(config, [*(one.removeprefix("--config.").split("=", 1) for one in SMALL_RECURSION)])
    given |= {"stage_order": "prompt,finetune"}
    override(config, [*given.items(), ("evaluate.max_new_tokens", "4"), *changes.items()])
    return config

  return make


@pytest.fixture(scope="module", params=["textual", "neural"])
def gated(request, make_config, neural_config, tmp_path_factory):
  """A finished run with a gate: its config, workdir and results."""
  folder = tmp_path_factory.mktemp(request.param) / "run"
  config = with_defaults(make_config()) if request.param == "textual" else neural_config()
  override(config, [("cascade.compute_budget", "1.5")])
  return config, folder, run.train(config, folder)


def test_the_budget_is_kept_on_validation_and_the_curves_are_reported(gated):
  _, folder, results = gated
  report = results["gate"]
  assert 1 <= report["validation"]["compute"] <= 1.5 and report["validation"]["rows"] == 4
  assert (folder / "gate.png").stat().st_size > 1000
  for name in ("gate", "random", "oracle"):
    compute, accuracy = report["curve"][name]
    assert compute[0] == 1 and compute[-1] <= 2 and len(compute) == len(accuracy)
    assert 0 <= report["area"][name] <= 100
  table = table_rows(results)
  *_, row, last = table
  assert row == "gated 1.5" and last in ("select", "finetune")
  assert table[row]["passes"] == pytest.approx(report["test"]["compute"])
  assert json.loads((folder / "results.json").read_text())["gate"] == report


def test_questions_that_pass_one_is_sure_of_are_not_given_to_pass_two(
  gated, lm, files, monkeypatch
):
  _, folder, _ = gated
  model = frozen_jax.load_adapter(folder, lm)
  inference, rows = model.inference, list(JsonLines(files["data.test"]))
  first = inference.first_pass(model, rows, inference.gate.measure)
  # A threshold between two of the rows, so that there are some of each kind.
  low, high = sorted(first.confidences)[1:3]
  assert low < high
  gate = dataclasses.replace(inference.gate, threshold=float(low + high) / 2)
  inference = dataclasses.replace(inference, gate=gate)
  given, answer_once = [], TunedModel.answer_once

  def noted(self, examples):
    given.append(examples)
    return answer_once(self, examples)

  monkeypatch.setattr(TunedModel, "answer_once", noted)
  replies = inference.replies(model, rows)
  unsure = [confidence < gate.threshold for confidence in first.confidences]
  assert [reply.passes for reply in replies] == [1 + one for one in unsure]
  (to_pass_two,) = given
  assert len(to_pass_two) == 2
  always = dataclasses.replace(inference, gate=None).replies(model, rows)
  for reply, both, text, one in zip(replies, always, first.texts, unsure, strict=True):
    assert reply.text == (both.text if one else text)


@pytest.mark.parametrize("budget, passes", [("1", 1.0), ("2", 2.0)])
def test_the_ends_of_the_budget(make_config, finished, tmp_path, budget, passes):
  workdir = shutil.copytree(finished, tmp_path / "run")
  config = make_config(**{"cascade.compute_budget": float(budget)})
  rows = table_rows(run.evaluate(config, workdir))
  gated, end = rows[f"gated {budget}"], rows["answer" if passes == 1 else "select"]
  assert gated["passes"] == passes and gated["exact_match"] == end["exact_match"]
  assert gated["f1"] == end["f1"]


def test_a_finished_run_gets_its_gate_by_evaluate(make_config, finished, lm, tmp_path):
  config = with_defaults(make_config())
  results = json.loads((finished / "results.json").read_text())
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  before = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
  assert "gate" not in results and before["inference"]["gate"] is None
  override(config, [("cascade.compute_budget", "1.5"), ("cascade.confidence", "agreement")])
  override(config, [("evaluate.batch_size", "3")])
  record = run.evaluate(config, tmp_path)
  assert record["gate"]["measure"] == "agreement"
  *_, row, last = table_rows(record)
  assert (row, last) == ("gated 1.5", "select")
  gate = frozen_jax.load_adapter(tmp_path, lm).inference.gate
  assert gate.threshold == record["gate"]["threshold"]
  after = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
  after["inference"]["gate"] = None
  assert after == before, "nothing else of the adapter has changed"
  assert (tmp_path / "evaluations" / "test" / "gate.png").stat().st_size > 1000
  again = run.evaluate(config, tmp_path)
  assert again["gate"] == record["gate"]
  override(config, [("cascade.compute_budget", "0")])
  assert "gate" not in run.evaluate(config, tmp_path)
  assert frozen_jax.load_adapter(tmp_path, lm).inference.gate == gate, "it is kept"


def test_a_gated_model_answers_alike_everywhere(gated, files, lm, tmp_path):
  config, folder, results = gated
  workdir = shutil.copytree(folder, tmp_path / "run")
  config = config.copy_and_resolve_references()
  override(config, [("predict.input", str(files["data.test"]))])
  predicted = [row["prediction"] for row in run.predict(config, workdir)]
  model = frozen_jax.load_adapter(workdir, lm)
  questions = [row["question"] for row in JsonLines(files["data.test"])]
  assert model.generate(questions, max_new_tokens=4) == predicted
  lines = JsonLines(folder / "predictions.jsonl")
  assert predicted == [row["predictions"]["gated 1.5"] for row in lines]
  with pytest.raises(UserError, match="takes a list of texts"):
    model.generate(questions[0], max_new_tokens=4)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"cascade.compute_budget": 2.5}, "compute_budget is 2.5; it must be at least 0 and at most 2"),
    ({"cascade.compute_budget": 1.5, "cascade.confidence": "mood"}, "confidence is 'mood'"),
  ],
)
def test_mistakes(make_config, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    run.train(make_config(**changes), tmp_path)


def test_agreement_needs_samples(neural_config, tmp_path):
  changes = {"cascade.compute_budget": "1.5", "cascade.confidence": "agreement"}
  with pytest.raises(UserError, match="agreement needs samples"):
    run.train(neural_config(**changes), tmp_path)
