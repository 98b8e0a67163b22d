"""The protocol of a pipeline: every one has it, and the driver needs no more of a new one."""

import dataclasses
import inspect
import json
from typing import ClassVar

import pytest
from ml_collections import ConfigDict

from frozen_jax import run
from frozen_jax.config.config_file import load_config
from frozen_jax.config.section import Section, section_values, setting
from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.scores import score_answers
from frozen_jax.models.inputs import first_questions
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.pipeline import Pipeline, with_same_test_data
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.run import settings as run_settings
from frozen_jax.run.results.records import table_rows
from tests.run.conftest import COUNTRIES, ROOT
from tests.run.task_files import lines_file


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_has_all_that_the_driver_calls(name):
  pipeline = PIPELINES[name]
  methods = [name for name, _ in inspect.getmembers(Pipeline, inspect.isroutine)]
  for method in ("__init__", *(method for method in methods if not method.startswith("_"))):
    of_protocol, found = (
      inspect.signature(getattr(kind, method)).parameters for kind in (Pipeline, pipeline)
    )
    assert list(found) == list(of_protocol), method
    assert all(found[one].kind == of_protocol[one].kind for one in found), method
  assert isinstance(pipeline.steps, tuple)
  assert section_values(pipeline.settings()), "its section has a default everywhere"


@pytest.mark.parametrize(
  "own",
  [
    {"test": "plain_english/validation"},
    {"fields": ("answers=first_hop",)},
    {"templates": "templates.yaml"},
  ],
)
def test_a_stage_of_other_questions_or_answers_is_no_row_beside_the_last(own):
  settings = lambda data: run_settings.resolve_run(
    {"stage_order": ["one"], "stages": {"one": {"method": "lora", "data": data}}}
  ).stages[0]
  models = {
    name: (settings(data), None) for name, data in {"other": own, "like": {}, "last": {}}.items()
  }
  assert with_same_test_data(models) == ["like", "last"]


# --- A third pipeline


@dataclasses.dataclass(frozen=True)
class FirstRowsSettings(Section):
  """Training on the first questions alone."""

  section: ClassVar[str] = "first_rows"

  count: int = setting(4, "questions", at_least=1)
  answer: str = setting("Lima", "of a row of the table that gives it always", affects_result=False)


class FirstRows:
  """Lets the stages read the first training questions; compares with a constant answer."""

  settings = FirstRowsSettings
  steps = ("select",)
  stage_fields = ()
  scoring_fields = ("answer",)
  has_samples = False

  @classmethod
  def dependencies(cls, run):
    return {}

  @classmethod
  def check(cls, run, lm, training=True):
    if run.pipelines["first_rows"].count > len(first_questions(run.data, run.data.train)):
      raise UserError("first_rows.count is more than the questions that there are; lower it")

  @classmethod
  def check_questions(cls, run, lm, examples):
    return list(examples)

  def __init__(self, run, lm, workdir):
    self._settings = run.pipelines["first_rows"]
    self.artifacts = Artifacts(workdir / "first_rows")

  def prepare(self, run, writer):
    rows = first_questions(run.data, run.data.train, self._settings.count)
    make = lambda first: rows[first:]
    path = self.artifacts.rows("train.jsonl", {"section": self._settings}, make, 2, len(rows))
    stages = tuple(stage.with_data(train=str(path)) for stage in run.stages)
    return dataclasses.replace(run, stages=stages)

  def stage(self, settings, trained, train):
    return settings

  def evaluated(self, settings, model):
    return settings

  def compared_stages(self, models):
    return list(models)

  def scores(self, scores, models):
    *others, last = scores
    settings, model = models[last]
    examples = first_questions(settings.data, settings.data.test, settings.evaluate.max_examples)
    answers = [self._settings.answer] * len(examples)
    constant = score_answers(model.question_task, examples, answers)
    return {name: scores[name] for name in others} | {"constant": constant, last: scores[last]}

  def first_pass_questions(self, split, max_questions):
    return None

  def inputs(self, examples):
    return [{**example, "question": f"{example['question']}?"} for example in examples]

  def report(self):
    return {"first_rows": len(self.artifacts.digests)}

  def lines(self, report):
    return [f"artifacts of first_rows: {report['first_rows']}"]


@pytest.fixture
def make_config(tiny, tmp_path, monkeypatch):
  """`make_config(**{"dotted.key": value})`: a smoke config with the third pipeline in the table."""
  monkeypatch.setitem(PIPELINES, "first_rows", FirstRows)
  # What is read from the table.
  monkeypatch.setitem(run_settings._ALL_SECTIONS, "first_rows", FirstRowsSettings)
  rows = [{"id": one, "question": f"Where is {one}", "answers": ["Lima"]} for one in COUNTRIES]
  files = {
    split: str(lines_file(tmp_path / f"{split}.jsonl", *rows))
    for split in ("train", "validation", "test")
  }

  def make(**changes):
    config = load_config(f"{ROOT}/configs/prompt_tuning.py:smoke")
    with config.unlocked():
      config.first_rows = ConfigDict({"count": 6})
    config.data.update(files)
    given = {"model.name": str(tiny), "mesh.data": 1, "prompt.length": 4, "data.lengths": (64,)}
    with config.unlocked():
      config.update_from_flattened_dict(given | {"train.batch_size": 2} | changes)
    return config

  return make


def test_a_new_pipeline_runs_in_every_mode(make_config, tmp_path, capsys):
  workdir = tmp_path / "run"
  stopped = run.train(make_config(stop_after="select"), workdir)
  assert (
    set(stopped["files"]) == {"train.jsonl"} and "Stopped after select" in capsys.readouterr().out
  )
  assert len((workdir / "first_rows" / "train.jsonl").read_text().splitlines()) == 6
  record = run.train(make_config(), workdir)
  assert "artifacts of first_rows: 1" in capsys.readouterr().out
  stage = next(iter(record["stages"]))
  assert list(table_rows(record)) == ["zero_shot", "constant", stage]
  assert table_rows(record)["constant"]["exact_match"] == 100.0
  assert record["first_rows"] == 1 and json.loads((workdir / "config.json").read_text())[
    "first_rows"
  ] == {"count": 6, "answer": "Lima"}
  again = run.evaluate(make_config(**{"first_rows.answer": "Rome"}), workdir)
  assert list(table_rows(again)) == ["zero_shot", "constant", stage]
  assert table_rows(again)["constant"]["exact_match"] == 0.0
  (tmp_path / "asked.txt").write_text("Where is Peru\n")
  config = make_config(**{"predict.input": str(tmp_path / "asked.txt")})
  (answer,) = run.predict(config, workdir)
  assert answer["input"] == "Where is Peru?"


def test_its_settings_are_checked_and_explained(make_config, tmp_path):
  with pytest.raises(UserError, match="config.first_rows.count is 0; it must be at least 1"):
    run.train(make_config(**{"first_rows.count": 0}), tmp_path / "run")
  config = make_config()
  with config.unlocked():
    config.first_rows.size = 3
  with pytest.raises(UserError, match="first_rows.count is more than the questions"):
    run.train(make_config(**{"first_rows.count": 99}), tmp_path / "run")
  with pytest.raises(UserError, match="unknown config key config.first_rows.size"):
    run.train(config, tmp_path / "run")
  with pytest.raises(UserError, match="stop_after is 'never'; it is empty or one of select"):
    run.train(make_config(stop_after="never"), tmp_path / "run")
  text = run_settings.help_text(run_settings.with_defaults(make_config()))
  assert "first_rows: Training on the first questions alone." in text
  assert "--config.first_rows.count=6" in text
