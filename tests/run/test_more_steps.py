"""A run that is given more steps: it equals one with all of them at once, or says what to do."""

import json
import shutil

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.run import train
from frozen_jax.run.results.records import table_rows
from frozen_jax.training.metrics import read_metrics
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file

pytestmark = pytest.mark.program

SAME = ("predictions.jsonl", "adapter/adapter.safetensors", "adapters/prompt/adapter.safetensors")


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  files = [lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  values = prompt_tuning_config(tiny, *files)
  return with_value(values, "train.final_fraction", 1.0)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  """The workdir of five steps at once."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  train(with_value(config, "train.steps", 5), workdir)
  return workdir


@pytest.fixture(scope="module")
def short(config, tmp_path_factory):
  """That of three; its last validation is on no grid."""
  workdir = tmp_path_factory.mktemp("short") / "run"
  train(config, workdir)
  return workdir


def lines(workdir):
  return [
    {name: value for name, value in line.items() if "second" not in name}
    for line in read_metrics(workdir)
  ]


def results(workdir):
  return json.loads((workdir / "results.json").read_text())


def figures(workdir):
  clock = "tokens_per_second"
  rows = table_rows(results(workdir)).items()
  return {name: {key: row[key] for key in row if key != clock} for name, row in rows}


@pytest.mark.parametrize("key", ["train.steps", "stages.prompt.train.steps"])
def test_a_complete_run_is_trained_on(config, whole, short, tmp_path, key):
  workdir = shutil.copytree(short, tmp_path / "run")
  longer = with_value(config, key, 5)
  record = train(longer, workdir)
  assert record["steps"] == 5
  assert lines(workdir) == lines(whole) and figures(workdir) == figures(whole)
  for name in SAME:
    assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
  stored = json.loads((workdir / "config.json").read_text())
  assert (stored["train"]["steps"] if key == "train.steps" else stored["stages"]["prompt"]) in (
    5,
    {"method": "prompt_tuning", "train": {"steps": 5}},
  )
  before = (workdir / "results.json").read_bytes()
  train(longer, workdir)
  assert (workdir / "results.json").read_bytes() == before, "it is complete now"


def test_until_it_is_scored_the_results_before_stay(config, short, train_stages, tmp_path, whole):
  workdir = shutil.copytree(short, tmp_path / "run")
  train_stages(with_value(config, "train.steps", 5), workdir)
  assert (workdir / "results.json").read_bytes() == (short / "results.json").read_bytes()
  assert lines(workdir) == lines(whole)
  train(with_value(config, "train.steps", 5), workdir)
  assert figures(workdir) == figures(whole) and results(workdir)["steps"] == 5


def test_an_unfinished_run_is_trained_on(config, whole, train_stages, tmp_path):
  train_stages(config, tmp_path)
  train(with_value(config, "train.steps", 5), tmp_path)
  assert lines(tmp_path) == lines(whole) and figures(tmp_path) == figures(whole)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"train.steps": 2}, "different: train.steps.*; step 3 of stage prompt is done"),
    ({"train.steps": 5, "seed": 1}, r"different: seed, train.steps\)"),
    ({"train.epochs": 0.5, "train.steps": 0}, "train.steps changed"),
  ],
)
def test_what_a_complete_run_refuses(config, short, tmp_path, changes, message):
  workdir = shutil.copytree(short, tmp_path / "run")
  for key, value in changes.items():
    config = with_value(config, key, value)
  with pytest.raises(UserError, match=message):
    train(config, workdir)
  assert (workdir / "results.json").read_bytes() == (short / "results.json").read_bytes()
  assert lines(workdir) == lines(short)


def test_a_complete_run_whose_rates_fall_says_how_to_train_on(config, short, tmp_path):
  falling = with_value(config, "train.final_fraction", 0.5)
  workdir = shutil.copytree(short, tmp_path / "run")
  stored = workdir / "config.json"
  stored.write_text(stored.read_text().replace('"final_fraction": 1.0', '"final_fraction": 0.5'))
  with pytest.raises(UserError, match="train.steps.*to train on, .*--config.init_from="):
    train(with_value(falling, "train.steps", 5), workdir)


@pytest.fixture(scope="module")
def two_stages(config):
  """Stage `on` starts from what `prompt` trains, `apart` from nothing."""
  stages = {
    "prompt": {"method": "prompt_tuning"},
    "apart": {"method": "prompt_tuning"},
    "on": {"method": "prompt_tuning", "init_from": ["prompt=prompt/prompt"]},
  }
  return {**config, "stages": stages, "stage_order": ["prompt", "apart", "on"]}


@pytest.fixture(scope="module")
def begun(two_stages, train_stages, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("two") / "run"
  train_stages(two_stages, workdir)
  return workdir


@pytest.mark.parametrize("stage, allowed", [("on", True), ("apart", True), ("prompt", False)])
def test_a_stage_on_which_another_builds_is_not_trained_on(
  two_stages, begun, train_stages, tmp_path, stage, allowed
):
  workdir = shutil.copytree(begun, tmp_path / "run")
  longer = with_value(two_stages, f"stages.{stage}.train", {"steps": 5})
  if allowed:
    train_stages(longer, workdir)
    assert max(line["step"] for line in read_metrics(workdir) if line["stage"] == stage) == 5
  else:
    with pytest.raises(UserError, match="stage on has begun from what stage prompt had trained"):
      train_stages(longer, workdir)
    assert lines(workdir) == lines(begun)
