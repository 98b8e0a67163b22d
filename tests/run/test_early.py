"""Mistakes that are found before any weight is read."""

import importlib

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.run import export, predict, train
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file


@pytest.fixture
def config(tmp_path, monkeypatch):
  """A config whose model must not be read."""

  def load(*_):
    raise AssertionError("the weights were read")

  for verb in ("train", "evaluate"):
    monkeypatch.setattr(importlib.import_module(f"frozen_jax.run.{verb}"), "load_model", load)
  files = [lines_file(tmp_path / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  return prompt_tuning_config("model", *files)


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("data.train", "nowhere.jsonl", "nowhere.jsonl"),
    ("data.validation", "nowhere.jsonl", "nowhere.jsonl"),
    ("data.test", "nowhere.jsonl", "nowhere.jsonl"),
    ("data.held_out", ["nowhere.jsonl"], "nowhere.jsonl"),
    ("data.train", "world_facts/nope", "nope"),
    ("data.template", "no braces", "template"),
    ("init_from", "runs/nowhere", "no such folder: runs/nowhere"),
    ("stages.prompt.train.steps", 0, "every stage has 0 steps"),
    ("stages.prompt.frozen_inputs", ["first=prompt/prompt"], "as a frozen input"),
    ("train.batch_size", 3, None),
    ("mesh.data", 3, "train.batch_size 4 does not split into 3"),
    ("mesh.fsdp", 64, "needs 64 devices"),
  ],
)
def test_training(config, tmp_path, key, value, message):
  wrong = with_value(config, key, value)
  if message is None:  # what is right goes on to the weights
    with pytest.raises(AssertionError, match="the weights were read"):
      train(wrong, tmp_path / "run")
    return
  with pytest.raises(UserError, match=message):
    train(wrong, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_other_modes(config, tmp_path, prompt_run):
  with pytest.raises(UserError, match="export.format is 'onnx'"):
    export(with_value(config, "export.format", "onnx"), prompt_run.workdir)
  with pytest.raises(UserError, match="nowhere.txt"):
    predict(with_value(config, "predict.input", "nowhere.txt"), prompt_run.workdir)
  from frozen_jax.run import evaluate

  with pytest.raises(UserError, match="evaluation is 'a/b'"):
    evaluate(with_value(config, "evaluation", "a/b"), prompt_run.workdir)
