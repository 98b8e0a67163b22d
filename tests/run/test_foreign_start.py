"""Runs that start from what others trained: a folder of PEFT, a .npy prompt."""

import json

import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.export import peft
from frozen_jax.export.peft_reading import CONFIG
from frozen_jax.methods.lora import Lora, LoraSettings
from frozen_jax.run import train
from frozen_jax.text.templates import make_template
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
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
  said = r"stage prompt cannot start from what is given.*different: prompt/vectors\); give the set"
  with pytest.raises(UserError, match=said):
    train(config | {"init_from": str(start)}, tmp_path / "run")


def lora_folder(folder, lm, alpha):
  lora = LoraSettings(rank=2, alpha=alpha, targets=("attn/q",))
  updates = Lora.build(lm, {"lora": lora}).init(lm, jax.random.key(0))["lora"]
  adapter = peft.lora_adapter(updates, lora, lm.config, lm.family)
  return peft.write_peft(folder, adapter, peft.BaseModel("tiny"), make_template("plain"))


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_what_no_stage_starts_from_is_refused(config, lm, tmp_path, method):
  config |= {"stages": {"prompt": {"method": method}}}
  start = lora_folder(tmp_path / "given", lm, 4.0)
  said = rf"holds lora of lora, from which no stage of this run starts \(prompt: {method}\)"
  with pytest.raises(UserError, match=said):
    train(config | {"init_from": str(start)}, tmp_path / "run")


LORA = {"rank": 2, "alpha": 4.0, "targets": ["attn/q"]}


def test_updates_that_count_otherwise_are_refused(config, lm, tmp_path, train_stages):
  config |= {"stages": {"prompt": {"method": "lora", "lora": LORA}}}
  config["train"] |= {"learning_rate": {"lora": 1e-9}}
  other = config | {"init_from": str(lora_folder(tmp_path / "other", lm, 6.0))}
  with pytest.raises(UserError, match=r"lora.alpha=6.0, and the stage has 4.0; give .*alpha=6.0"):
    train(other, tmp_path / "run")
  same = config | {"init_from": str(lora_folder(tmp_path / "same", lm, 4.0))}
  train_stages(same, tmp_path / "run")
  adapter = frozen_jax.load_adapter(tmp_path / "run" / "adapters" / "prompt", lm)
  first = frozen_jax.load_adapter(tmp_path / "same", lm)
  np.testing.assert_allclose(
    *(one.trained["lora"]["attn"]["q"]["a"] for one in (adapter, first)), atol=1e-6
  )


@pytest.mark.parametrize(
  "method, section, key, values",
  [
    ("lora", "lora", "alpha", (4.0, 8.0)),
    ("id_pt", "generator", "heads", (2, 4)),
    ("neural_recursion", "recursion", "connector.heads", (2, 4)),
  ],
)
def test_a_stage_that_reads_the_numbers_of_another_otherwise_is_refused(
  config, tmp_path, method, section, key, values
):
  part = {"neural_recursion": "connector"}.get(method, section)
  stages = {
    name: {"method": method} | with_value({}, f"{section}.{key}", value)
    for name, value in zip(("one", "two"), values, strict=True)
  }
  stages["two"]["init_from"] = [f"{part}=one/{part}"]
  if method == "neural_recursion":
    stages = {name: one | {"frozen_inputs": []} for name, one in stages.items()}
  config |= {"stage_order": ["one", "two"], "stages": stages}
  config["train"] = {"steps": 1, "warmup_steps": 0}
  said = f"stage two cannot start from what stage one trains: .*{section}.{key}={values[0]}, and"
  with pytest.raises(UserError, match=said):
    train(config | {"model": {"name": str(tmp_path / "no model")}}, tmp_path / "run")
