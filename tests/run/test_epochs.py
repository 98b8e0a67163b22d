"""`train.epochs` in place of `train.steps`: which steps it gives, and how the two go together."""

import json
import logging
import math
import shutil

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.main import parse
from frozen_jax.run import train
from frozen_jax.run.settings import resolve_run
from frozen_jax.training.metrics import read_metrics
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file

HIDDEN = {"dataset": "d", "input": "x", "choices": ["a", "b"], "labels": [-1]}


def stages_of(*given, config="recursive:smoke"):
  """({stage: (steps, epochs)}, notes) of a command line."""
  command = parse(["frozen-jax", f"--config={config}", *given])
  run = resolve_run(command.config)
  return {one.name: (one.train.steps, one.train.epochs) for one in run.stages}, command.notes


def test_steps_are_the_default():
  names = ("prompt", "baseline", "late_prompt", "control", "finetune")
  assert stages_of()[0] == dict.fromkeys(names, (2, 0.0))


def test_epochs_of_the_run_replace_its_steps_and_stages_keep_their_own():
  stages, notes = stages_of("--config.train.epochs=2", config="recursive:paper")
  assert stages == {
    "prompt": (120, 0.0),
    "baseline": (0, 2.0),
    "pretrain": (40, 0.0),
    "finetune": (0, 2.0),
  }
  assert [note.partition(";")[0] for note in notes] == [
    "stage prompt keeps its own train.steps=120",
    "stage pretrain keeps its own train.steps=40",
  ]


@pytest.mark.parametrize(
  "given, stage, expected",
  [
    (["--config.stages.prompt.train.epochs=1.5"], "prompt", (0, 1.5)),
    (["--config.train.epochs=2", "--config.stages.finetune.train.steps=7"], "finetune", (7, 0.0)),
    (["--config.train.epochs=2", "--config.stages.baseline.train.steps=0"], "baseline", (0, 0.0)),
    (["--config.train.steps=9", "--config.stages.finetune.train.epochs=1"], "finetune", (0, 1.0)),
    (["--config.train.steps=9", "--config.train.epochs=0"], "finetune", (9, 0.0)),
    (["--config.train.epochs=3", "--config.train.steps=0"], "finetune", (0, 3.0)),
  ],
)
def test_one_stage_has_what_it_is_given(given, stage, expected):
  assert stages_of(*given)[0][stage] == expected


@pytest.mark.parametrize("section", ["train", "stages.prompt.train", "stages.finetune.train"])
def test_both_given_are_an_error(section):
  with pytest.raises(UserError, match=f"config.{section}.* are both given.*give one of them"):
    stages_of(f"--config.{section}.steps=3", f"--config.{section}.epochs=2")


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "some"])
def test_what_is_no_number_of_epochs(value):
  with pytest.raises(UserError, match="train.epochs"):
    stages_of(f"--config.train.epochs={value}")


@pytest.mark.parametrize(
  "values, expected",
  [
    ({"train": {"epochs": 3}}, (0, 3.0)),
    ({"train": {"steps": 40}}, (40, 0.0)),
    ({}, (100, 0.0)),
    ({"train": {"epochs": 3}, "stages": {"a": {"train": {"steps": 50}}}}, (50, 0.0)),
    ({"train": {"steps": 3}, "stages": {"a": {"train": {"epochs": 2}}}}, (0, 2.0)),
  ],
)
def test_configs_of_python(values, expected):
  stages = {"a": {"method": "lora", **values.get("stages", {}).get("a", {})}}
  run = resolve_run(values | {"stage_order": ["a"], "stages": stages})
  assert (run.stages[0].train.steps, run.stages[0].train.epochs) == expected
  again = resolve_run(json.loads(json.dumps(run.values)))
  assert again.stages[0].train == run.stages[0].train, "as config.json has it"


def test_a_config_with_both_is_an_error():
  config = {"stage_order": ["a"], "stages": {"a": {"method": "lora"}}}
  with pytest.raises(UserError, match="train.steps is 3 and train.epochs 2.*set one of them to 0"):
    resolve_run(config | {"train": {"steps": 3, "epochs": 2}})


def test_the_re_ranker_has_epochs_too():
  command = parse(["x", "--config=frozen_reader:smoke", "--config.reader.re_ranker.epochs=2"])
  settings = resolve_run(command.config).pipelines["reader"].re_ranker
  assert (settings.steps, settings.epochs) == (0, 2.0)
  assert settings.for_rows(20).steps == math.ceil(2 * 20 / settings.batch_size)


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
  """Three short questions, one that is too long, one whose answer is hidden; batches of two."""
  folder = tmp_path_factory.mktemp("data")
  rows = [
    {"dataset": "d", "input": row["question"], "target": row["answers"][0]} for row in QUESTIONS
  ]
  long = {"dataset": "d", "input": "word " * 200, "target": "no"}
  train_file = lines_file(folder / "train.jsonl", *rows[:2], long, HIDDEN, rows[2])
  values = prompt_tuning_config(tiny, train_file, lines_file(folder / "test.jsonl", *rows))
  values = with_value(values, "train.batch_size", 2)
  return with_value(values, "train.final_fraction", 0.1)


def lines(workdir):
  return [
    {name: value for name, value in line.items() if "second" not in name}
    for line in read_metrics(workdir)
  ]


@pytest.mark.program
@pytest.mark.parametrize("epochs, steps", [(2, 3), (2.4, 4)])
def test_epochs_are_so_many_steps(config, train_stages, tmp_path, caplog, epochs, steps):
  caplog.set_level(logging.INFO, logger="frozen_jax")
  train_stages(with_value(config, "train", config["train"] | {"steps": steps}), tmp_path / "steps")
  given = {key: value for key, value in config["train"].items() if key != "steps"}
  config = with_value(config, "train", given | {"epochs": epochs})
  train_stages(config, tmp_path / "epochs")
  said = [record.getMessage() for record in caplog.records if "epochs" in record.getMessage()]
  assert len(said) == 1 and said[0].endswith(f", {steps} steps ({epochs} epochs of 3 rows)")
  assert lines(tmp_path / "epochs") == lines(tmp_path / "steps"), "rates, validations and rows"
  record = train(config, tmp_path / "epochs")
  stage = record["stages"]["prompt"]
  assert (stage["steps"], stage["epochs"], stage["epoch_rows"]) == (steps, epochs, 3)
  assert "epochs" not in str(train(config, tmp_path / "epochs")["stages"]["prompt"]["examples"])


@pytest.mark.program
def test_a_stage_of_epochs_resumes_and_is_trained_on(config, train_stages, tmp_path):
  given = {key: value for key, value in config["train"].items() if key != "steps"}
  constant = given | {"final_fraction": 1.0}
  of = lambda epochs: with_value(config, "train", constant | {"epochs": epochs})
  train_stages(of(4), tmp_path / "whole")
  train_stages(of(2), tmp_path / "run")
  before = lines(tmp_path / "run")
  train_stages(of(2), tmp_path / "run")
  assert lines(tmp_path / "run") == before
  kept = shutil.copytree(tmp_path / "run", tmp_path / "kept")
  train_stages(of(4), tmp_path / "run")
  assert lines(tmp_path / "run") == lines(tmp_path / "whole")
  train_stages(with_value(config, "train", constant | {"steps": 6}), kept)
  assert lines(kept) == lines(tmp_path / "whole"), "six steps are four epochs"


@pytest.mark.program
def test_warm_up_that_does_not_fit_into_the_epochs(config, tmp_path):
  given = {key: value for key, value in config["train"].items() if key != "steps"}
  config = with_value(config, "train", given | {"epochs": 1, "warmup_steps": 3})
  with pytest.raises(UserError, match="3 warm-up steps do not fit into 2 steps"):
    train(config, tmp_path)
