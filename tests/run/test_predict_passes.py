"""A finished recursion answers with another number of passes than it was trained with."""

import dataclasses
import functools
import json
import logging

import pytest

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.scores import score_model
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.run.settings import resolve_run
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file

FLAG = "recursion.predict_passes"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  """(config, workdir) of a control and a second pass, and the LM."""
  folder = tmp_path_factory.mktemp("passes")
  files = [lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  recursion = {"read": "final", "write": "1", "first_prompt": "none"}
  own = {
    "stage_order": ["control", "second"],
    "stages": {
      "control": {"method": "neural_recursion", "recursion": {"passes": 1}},
      "second": {"method": "neural_recursion"},
    },
    "recursion": recursion | {"connector": {"kind": "linear"}},
    "evaluate": {"max_new_tokens": 3},
  }
  config = prompt_tuning_config(tiny, *files) | own
  config["train"] |= {"learning_rate": {"connector": 0.5, "prompt": 0.1}}
  frozen_jax.run.train(config, folder / "run")
  lm = frozen_jax.load_frozen(str(tiny), dtype="float32")
  return config, folder / "run", lm


@pytest.fixture(scope="module")
def of_passes(finished):
  """`of_passes(passes)`: (loss, answers) of the adapter with so many, without the run's verbs."""
  config, workdir, lm = finished

  @functools.cache
  def score(passes):
    stage = resolve_run(config).stage("second")
    model = frozen_jax.load_adapter(workdir, lm)
    sections = model.sections | {
      "recursion": dataclasses.replace(model.sections["recursion"], passes=passes)
    }
    method = NeuralRecursion.build(lm, sections)
    model = dataclasses.replace(model, method=method, sections=sections)
    scores = score_model(model, stage.data, stage.evaluate, stage.prompt.length)
    return scores.metrics["loss"], [row["prediction"] for row in scores.predictions]

  return score


@pytest.mark.parametrize("key, passes", [(FLAG, 2), (f"stages.second.{FLAG}", 3)])
def test_an_evaluation_is_that_of_so_many_passes(finished, of_passes, caplog, capsys, key, passes):
  config, workdir, _ = finished
  trained = json.loads((workdir / "results.json").read_text())
  with caplog.at_level(logging.WARNING):
    record = frozen_jax.run.evaluate(with_value(config, key, passes), workdir)
  loss, answers = of_passes(passes)
  assert record["metrics"]["loss"] == pytest.approx(loss, rel=1e-6)
  rows = list((workdir / "evaluations").glob("*/predictions.jsonl"))
  newest = max(rows, key=lambda path: path.stat().st_mtime_ns)
  assert [json.loads(line)["prediction"] for line in newest.open()] == answers
  assert record["rows"]["control"]["loss"] == trained["rows"]["control"]["loss"]
  said = f"answers with recursion.passes={passes}; it was trained with recursion.passes=2"
  if passes == 2:
    assert "used_with" not in record and said not in caplog.text
    assert record["metrics"]["loss"] == trained["metrics"]["loss"]
  else:
    changed = {"recursion.passes": {"trained": 2, "used": passes}}
    assert record["used_with"] == {"second": changed} and said in caplog.text
    assert record["metrics"]["loss"] != trained["metrics"]["loss"]
    assert record["metrics"]["gflop"] > trained["metrics"]["gflop"]
    printed = f"second answered with recursion.passes={passes}, trained with 2"
    assert printed in capsys.readouterr().out


def test_predictions_are_those_of_so_many_passes(finished, of_passes, tmp_path):
  config, workdir, _ = finished
  asked = lines_file(tmp_path / "asked.jsonl", *QUESTIONS)
  given = config | {"predict": {"input": str(asked)}}
  rows = {
    passes: frozen_jax.run.predict(with_value(given, FLAG, passes), workdir) for passes in (0, 3)
  }
  texts = {passes: [row["prediction"] for row in own] for passes, own in rows.items()}
  assert texts[3] == of_passes(3)[1]
  assert texts[0] == of_passes(2)[1]


def test_passes_of_training_are_not_changed_by_the_way(finished):
  """`recursion.passes` stays what was trained, and another flag starts no other run."""
  config, workdir, _ = finished
  trained = json.loads((workdir / "results.json").read_text())
  record = frozen_jax.run.evaluate(with_value(config, "recursion.passes", 3), workdir)
  assert record["metrics"]["loss"] == trained["metrics"]["loss"]
  again = frozen_jax.run.train(with_value(config, FLAG, 3), workdir)
  assert again["metrics"] == trained["metrics"]


def test_a_gate_of_another_number_of_passes_is_not_kept(finished):
  config, workdir, _ = finished
  before = (workdir / "adapter" / "adapter.json").read_bytes()
  gated = with_value(config, FLAG, 3) | {"cascade": {"compute_budget": 1.5}}
  assert frozen_jax.run.evaluate(gated, workdir)["gate"]
  assert (workdir / "adapter" / "adapter.json").read_bytes() == before


@pytest.mark.parametrize("order", [["control"], ["second"], ["second", "control"]])
def test_an_evaluation_of_some_stages_is_of_their_own_adapters(finished, order):
  config, workdir, _ = finished
  trained = json.loads((workdir / "results.json").read_text())
  losses = {name: row["loss"] for name, row in trained["rows"].items()}
  losses["second"] = trained["metrics"]["loss"]
  record = frozen_jax.run.evaluate(config | {"stage_order": order}, workdir)
  found = {name: row["loss"] for name, row in record["rows"].items()}
  found[order[-1]] = record["metrics"]["loss"]
  assert found == pytest.approx({name: losses[name] for name in found}) and {*order} <= {*found}


def test_one_pass_is_refused(finished):
  config, workdir, _ = finished
  with pytest.raises(UserError, match="recursion.predict_passes is 1"):
    frozen_jax.run.evaluate(with_value(config, FLAG, 1), workdir)
