"""Runs that start from what others trained: a folder of PEFT, a .npy prompt."""

import json

import numpy as np
import pytest

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.export import peft
from frozen_jax.export.peft_reading import CONFIG
from frozen_jax.run import train
from frozen_jax.text.templates import make_template
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config
from tests.run.task_files import lines_file


@pytest.fixture
def config(tiny, tmp_path):
  """One step, that hardly changes the prompt."""
  files = [lines_file(tmp_path / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  values = prompt_tuning_config(tiny, *files)
  values["train"] |= {"steps": 1, "learning_rate": {"prompt": 1e-9}}
  return values


def vectors(lm, length=4):
  draw = np.random.default_rng(0).normal(0, 0.1, (length, lm.config.width))
  return draw.astype(np.float32)


def peft_folder(folder, lm, **settings):
  adapter = peft.prompt_adapter(vectors(lm), lm.config)
  peft.write_peft(folder, adapter, peft.BaseModel("tiny"), make_template("plain"))
  stored = json.loads((folder / CONFIG).read_text())
  (folder / CONFIG).write_text(json.dumps(stored | settings))
  return folder


def npy_file(folder, lm, length=4):
  folder.mkdir()
  np.save(folder / "prompt.npy", vectors(lm, length))
  return folder / "prompt.npy"


@pytest.mark.parametrize("make", [peft_folder, npy_file])
def test_the_trained_part_starts_as_it(config, lm, tmp_path, train_stages, make):
  start = make(tmp_path / "given", lm)
  train_stages(config | {"init_from": str(start)}, tmp_path / "run")
  adapter = frozen_jax.load_adapter(tmp_path / "run" / "adapters" / "prompt", lm)
  np.testing.assert_allclose(adapter.trained["prompt"]["vectors"], vectors(lm), atol=1e-6)


def test_what_is_refused_is_so_before_the_model_is_read(config, lm, tmp_path):
  start = peft_folder(tmp_path / "given", lm, modules_to_save=["lm_head"])
  config |= {"init_from": str(start), "model": {"name": str(tmp_path / "no model")}}
  with pytest.raises(UserError, match="modules_to_save"):
    train(config, tmp_path / "run")


def test_another_length_is_refused(config, lm, tmp_path):
  start = npy_file(tmp_path / "given", lm, length=5)
  with pytest.raises(UserError, match="stage prompt cannot start from what is given"):
    train(config | {"init_from": str(start)}, tmp_path / "run")
