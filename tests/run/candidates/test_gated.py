"""Recursion only when needed: the gate of a run, what it leaves out, and where it is kept."""

import json
import shutil

import pytest

import frozen_jax
from frozen_jax import run
from frozen_jax.core.errors import UserError
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.run import two_pass
from frozen_jax.run.config_file import load_config
from frozen_jax.run.overrides import override
from tests.run.conftest import ROOT, SMALL_RECURSION


@pytest.fixture(scope="module")
def neural_config(tiny, files):
  """`neural_config(**{"dotted.key": "value"})`: the neural recursive LM on the same questions."""

  def make(**changes):
    config = load_config(f"{ROOT}/configs/recursive.py:smoke")
    given = {"model.name": str(tiny), **{key: str(path) for key, path in files.items()}}
    override(config, [*(one.removeprefix("--config.").split("=", 1) for one in SMALL_RECURSION)])
    override(config, [*given.items(), ("evaluate.max_new_tokens", "4"), *changes.items()])
    return config

  return make


@pytest.fixture(scope="module", params=["textual", "neural"])
def gated(request, make_config, neural_config, tmp_path_factory):
  """A finished run with a gate: its config, workdir and results."""
  folder = tmp_path_factory.mktemp(request.param) / "run"
  config = make_config() if request.param == "textual" else neural_config()
  override(config, [("recursion.compute_budget", "1.5")])
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
  *_, row, last = results["rows"]
  assert row == "gated 1.5" and last in ("select", "finetune")
  assert results["rows"][row]["passes"] == pytest.approx(report["test"]["compute"])
  assert json.loads((folder / "results.json").read_text())["gate"] == report


def test_rows_that_pass_one_is_sure_of_are_not_given_to_pass_two(gated, lm, files, monkeypatch):
  _, folder, _ = gated
  adapter = frozen_jax.load_adapter(folder, lm)
  rows = list(JsonLines(files["data.test"]))
  first = two_pass.first_pass(adapter.system, lm, rows, adapter.options["gate"]["measure"])
  # A threshold between two of the rows, so that there are some of each kind.
  low, high = sorted(first.sure)[1:3]
  assert low < high
  system = adapter.system
  system.options["gate"] = system.options["gate"] | {"threshold": float(low + high) / 2}
  asked, answer = [], two_pass.answer

  def noted(*arguments):
    asked.append(arguments[-1])
    return answer(*arguments)

  monkeypatch.setattr(two_pass, "answer", noted)
  found = two_pass.replies(system, lm, rows)
  unsure = [sure < system.options["gate"]["threshold"] for sure in first.sure]
  assert [reply.passes for reply in found] == [1 + one for one in unsure]
  (given,) = asked
  assert len(given) == 2
  del system.options["gate"]
  always = two_pass.replies(system, lm, rows)
  for reply, whole, text, one in zip(found, always, first.texts, unsure, strict=True):
    assert reply.text == (whole.text if one else text)


@pytest.mark.parametrize("budget, passes", [("1", 1.0), ("2", 2.0)])
def test_the_ends_of_the_budget(make_config, tmp_path, budget, passes):
  config = make_config(**{"recursion.compute_budget": float(budget)})
  results = run.train(config, tmp_path)
  rows = results["rows"]
  gated, end = rows[f"gated {budget}"], rows["answer" if passes == 1 else "select"]
  assert gated["passes"] == passes and gated["exact_match"] == end["exact_match"]
  assert gated["f1"] == end["f1"]


def test_a_finished_run_gets_its_gate_by_evaluate(make_config, lm, tmp_path):
  config = make_config()
  ungated = run.train(config, tmp_path)
  before = dict(frozen_jax.load_adapter(tmp_path, lm).options)
  assert "gate" not in ungated and "gate" not in before
  override(config, [("recursion.compute_budget", "1.5"), ("recursion.confidence", "agreement")])
  override(config, [("evaluate.batch_size", "3")])
  results = run.evaluate(config, tmp_path)
  assert results["gate"]["measure"] == "agreement"
  after = dict(frozen_jax.load_adapter(tmp_path, lm).options)
  assert after.pop("gate")["threshold"] == results["gate"]["threshold"]
  assert after == before
  again = run.evaluate(config, tmp_path)
  assert again["gate"] == results["gate"]


def test_a_gated_adapter_answers_alike_everywhere(gated, files, lm, tmp_path):
  config, folder, _ = gated
  workdir = shutil.copytree(folder, tmp_path / "run")
  override(config, [("predict.input", str(files["data.test"]))])
  predicted = [row["prediction"] for row in run.predict(config, workdir)]
  adapter = frozen_jax.load_adapter(workdir, lm)
  questions = [row["question"] for row in JsonLines(files["data.test"])]
  assert adapter.generate(questions, max_new_tokens=4) == predicted
  with pytest.raises(UserError, match="takes a list of texts"):
    adapter.generate(questions[0], max_new_tokens=4)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"recursion.compute_budget": 2.5}, "compute_budget is 2.5; give passes"),
    ({"recursion.compute_budget": 1.5, "recursion.confidence": "mood"}, "confidence is 'mood'"),
  ],
)
def test_mistakes(make_config, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    run.train(make_config(**changes), tmp_path)


def test_agreement_needs_samples(neural_config, tmp_path):
  changes = {"recursion.compute_budget": "1.5", "recursion.confidence": "agreement"}
  with pytest.raises(UserError, match="agreement needs samples"):
    run.train(neural_config(**changes), tmp_path)
