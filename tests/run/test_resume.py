"""Which configs a run that was stopped can be resumed with, and which are refused."""

import dataclasses
import gzip
import json
import re
import shutil

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.models.adapter_folder import read_adapter
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file


@dataclasses.dataclass
class Begun:
  """A run that has trained its stage and scored nothing: its config, its data, its workdir."""

  config: dict
  files: dict
  workdir: object


@pytest.fixture(scope="module")
def begun(tiny, train_stages, tmp_path_factory):
  folder = tmp_path_factory.mktemp("resume")
  names = ("train", "validation")
  files = {name: lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in names}
  config = prompt_tuning_config(tiny, files["train"], files["validation"])
  train_stages(config, folder / "run")
  return Begun(config, files, folder / "run")


@pytest.fixture
def resume(begun, train_stages, tmp_path):
  """`resume({dotted key: value})`: resumes a copy of the run.

  Returns the files that changed: none where nothing is trained again.
  """
  workdir = shutil.copytree(begun.workdir, tmp_path / "run")

  def run(changes):
    config = begun.config
    for key, value in changes.items():
      config = with_value(config, key, value)
    train_stages(config, workdir)
    names = ("metrics.jsonl", "adapters/prompt/adapter.safetensors")
    return [
      name for name in names if (workdir / name).read_bytes() != (begun.workdir / name).read_bytes()
    ]

  return run


def test_with_the_same_config(resume):
  assert resume({}) == []


@pytest.mark.parametrize("steps", [2, 30])
def test_with_other_steps_the_message_says_how_to_train_on(
  resume, begun, train_stages, tmp_path, steps
):
  """The flags that it gives start a run from what was trained."""
  with pytest.raises(UserError, match="different: train.steps.*to train on, ") as error:
    resume({"train.steps": steps})
  flags = dict(re.findall(r"--config\.([\w.]+)=(\S+)", str(error.value)))
  config = begun.config | {"stage_order": [flags["stage_order"]], "init_from": flags["init_from"]}
  config["train"] = config["train"] | {"learning_rate": {"prompt": 1e-9}}
  train_stages(config, tmp_path / "another")
  before, after = (
    read_adapter(workdir / "adapters" / "prompt")[0]["trained"]["prompt"]["vectors"]
    for workdir in (begun.workdir, tmp_path / "another")
  )
  np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_with_the_same_data_in_other_files(resume, begun, tmp_path, suffix):
  changes = {}
  for split, file in begun.files.items():
    path, data = tmp_path / f"my_{split}.jsonl{suffix}", file.read_bytes()
    path.write_bytes(gzip.compress(data) if suffix else data)
    changes[f"data.{split}"] = str(path)
  assert changes.keys() == {"data.train", "data.validation"} and resume(changes) == []


def test_with_the_same_model_in_another_folder(resume, tiny, tmp_path):
  assert resume({"model.name": str(shutil.copytree(tiny, tmp_path / "model"))}) == []


def test_with_another_evaluation(resume):
  values = {
    "max_new_tokens": 4,
    "num_beams": 2,
    "batch_size": 2,
    "max_examples": 1,
    "normalisation": "bytes",
  }
  assert all(getattr(EvaluateSettings(), field) != value for field, value in values.items())
  assert resume({f"evaluate.{field}": value for field, value in values.items()}) == []


def test_with_other_test_data(resume, begun):
  assert resume({"data.test": str(begun.files["train"]), "data.held_out": []}) == []


@pytest.mark.parametrize(
  "changes",
  [
    {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    {
      "train.log_every": 1,
      "train.checkpoint_every": 1,
      "baseline": "prompt",
      "evaluation": "mine",
      "predict.input": "mine.txt",
      "export.format": "peft",
      "model.remat": "full",
      "model.cache": "int8",
      "data.encoder_length": 64,
      "data.temperature": 3.0,
      "data.cap": 5,
    },
  ],
  ids=["mesh", "others"],
)
def test_with_what_training_does_not_depend_on(resume, changes):
  """No change keeps another one from being refused, so they are made at once."""
  assert resume(changes) == []


def test_with_a_further_stage_that_does_not_run(resume):
  assert resume({"stages.other.method": "prompt_tuning"}) == []


def test_with_settings_that_the_method_does_not_read(resume):
  assert resume({"lora.rank": 3, "recursion.passes": 3, "train.learning_rate.lora": 0.5}) == []


@pytest.mark.parametrize(
  "key, value, names",
  [
    ("seed", 1, "seed"),
    ("model.dtype", "bfloat16", "model.dtype"),
    ("prompt.length", 5, "prompt.length"),
    ("prompt.text", "Answer.", "prompt.text"),
    ("train.learning_rate.prompt", 0.5, "train.learning_rate"),
    ("stages.prompt.train.learning_rate.prompt", 0.5, "train.learning_rate"),
    ("train.steps", 4, "train.steps"),
    ("data.template", "{question}", "data.template"),
    ("data.lengths", [32, 64], "data.lengths"),
    ("stages.prompt.method", "prefix_tuning", "method"),
  ],
)
def test_not_with_what_training_depends_on(resume, key, value, names):
  with pytest.raises(UserError, match=rf"holds a run of another config \(different: .*{names}"):
    resume({key: value})


def test_a_prompt_that_the_method_lacks_counts_where_it_shortens_the_texts(
  begun, train_stages, tmp_path
):
  """All methods leave the same room for a prompt."""
  config = with_value(begun.config, "stages.prompt.method", "lora")
  train_stages(config, tmp_path)
  train_stages(with_value(config, "prompt.length", 5), tmp_path)
  with pytest.raises(UserError, match=r"another configuration \(lengths changed\)"):
    train_stages(with_value(config, "prompt.length", 90), tmp_path)


def test_not_with_other_stages(resume):
  with pytest.raises(UserError, match=r"another config \(different: stage_order\)"):
    resume({"stages.more": {"method": "lora"}, "stage_order": ["prompt", "more"]})


@pytest.mark.parametrize("split, entry", [("train", "training"), ("validation", "validation")])
def test_not_with_data_that_were_rewritten_in_place(resume, begun, split, entry):
  """With as many rows, of as many bytes, as before."""
  path = begun.files[split]
  before = path.read_bytes()
  path.write_bytes(before.replace(b"Lima", b"Bari"))
  try:
    assert len(path.read_bytes()) == len(before)
    message = rf"belongs to a run of another configuration \({entry}_data changed\)"
    with pytest.raises(UserError, match=message):
      resume({})
  finally:
    path.write_bytes(before)


def test_not_with_another_model(resume, make_folder):
  with pytest.raises(UserError, match="was trained on another frozen model"):
    resume({"model.name": str(make_folder(seed=1))})


@pytest.mark.parametrize(
  "file, old, new, names",
  [
    ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5', "lm_config.norm_eps"),
    ("tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true', "lm_tokenizer"),
    ("tokenizer_config.json", '"eos_token": "<|end|>"', '"eos_token": "a"', "answer_end"),
  ],
)
def test_not_with_a_model_that_computes_or_reads_otherwise(
  resume, tiny, tmp_path, file, old, new, names
):
  """The weights are the same."""
  folder = shutil.copytree(tiny, tmp_path / "model")
  text = (folder / file).read_text()
  assert old in text
  (folder / file).write_text(text.replace(old, new))
  with pytest.raises(UserError, match=rf"another configuration \(.*{names}"):
    resume({"model.name": str(folder)})


def test_not_with_another_chat_template_where_it_is_read(begun, tiny, train_stages, tmp_path):
  model = shutil.copytree(tiny, tmp_path / "model")
  template = "{% for m in messages %}U: {{m.content}} {% endfor %}A:"
  plain = with_value(begun.config, "model.name", str(model))
  chat = with_value(plain, "data.template", "chat")
  (model / "chat_template.jinja").write_text(template)
  for name, config in (("plain", plain), ("chat", chat)):
    train_stages(config, tmp_path / name)
  (model / "chat_template.jinja").write_text(template.replace("A:", "Reply:"))
  train_stages(plain, tmp_path / "plain")
  with pytest.raises(UserError, match=r"another configuration \(chat_template changed\)"):
    train_stages(chat, tmp_path / "chat")


def test_config_json_is_what_the_run_was_resumed_with(begun, resume, tmp_path):
  assert resume({"train.log_every": 1, "evaluate.max_examples": 1}) == []
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (config["train"]["log_every"], config["evaluate"]["max_examples"]) == (1, 1)
