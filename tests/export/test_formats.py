"""`--mode=export` writes each format of a workdir, whole or not at all."""

import json
import resource

import pytest
from safetensors import safe_open

from frozen_jax.config.config_file import load_config
from frozen_jax.core.errors import UserError
from frozen_jax.export.manifest import read_manifest
from frozen_jax.run import export
from tests.export.conftest import QUESTIONS, tuned
from tests.processes import ROOT

WRITTEN = {
  "prompt_embeds": {"prompt_embeds.json", "prompt_embeds.jsonl", "prompt_embeds.safetensors"},
  "orbax": {"orbax.json", "tree"},
  "stablehlo": {"prefill.bin", "step.bin", "trained.safetensors", "frozen.safetensors"}
  | {"stablehlo.json", "tokenizer"},
}


@pytest.fixture
def workdir(lm, folder, tmp_path):
  """`workdir(method)`: the folder of a run with an adapter of it, and a config."""

  def make(method, **settings):
    tuned(lm, method, **settings).save(tmp_path / "run" / "adapter")
    config = load_config(f"{ROOT}/configs/prompt_tuning.py:smoke")
    config.mesh.data = 1
    config.model.update({"name": str(folder), "dtype": "float32"})
    config.evaluate.max_new_tokens = 6
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    config.predict.input = str(tmp_path / "questions.txt")
    config.export.folder = str(tmp_path / "out")
    return config, tmp_path / "run"

  return make


@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_is_written_with_its_sizes(workdir, tmp_path, capsys, name):
  config, run = workdir("prompt_tuning")
  config.export.format = name
  assert export(config, run) == {"folder": str(tmp_path / "out"), "format": name}
  assert {one.name for one in (tmp_path / "out").iterdir()} == WRITTEN[name]
  about = read_manifest(tmp_path / "out", name)
  assert about["method"] == "prompt_tuning" and "{question}" in about["template"]
  said = capsys.readouterr().out
  assert all(f"  {one}: " in said for one in WRITTEN[name]) and ": 0 bytes" not in said
  if name == "prompt_embeds":
    lines = (tmp_path / "out" / "prompt_embeds.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "2", "3"]
    with safe_open(tmp_path / "out" / "prompt_embeds.safetensors", framework="np") as rows:
      assert sorted(rows.keys()) == ["1", "2", "3"]


def test_a_lora_for_llama_cpp_has_a_card_that_says_how(workdir, tmp_path, capsys):
  config, run = workdir("lora")
  config.export.format = "gguf_lora"
  export(config, run)
  assert {one.name for one in (tmp_path / "out").iterdir()} == {"adapter.gguf", "README.md"}
  card = (tmp_path / "out" / "README.md").read_text()
  assert "library_name: gguf" in card and "--lora adapter.gguf" in card and "{question}" in card
  assert "for llama.cpp" in capsys.readouterr().out
  config.model.num_layers = 1
  with pytest.raises(UserError, match="llama.cpp loads whole models"):
    export(config, run)


@pytest.mark.parametrize(
  "name, size", [("orbax", 3000), ("stablehlo", 60_000), ("gguf_lora", 3000)]
)
def test_what_a_disk_does_not_take_is_no_export(workdir, tmp_path, name, size):
  """A limit on the size of files stands for a full disk."""
  config, run = workdir("lora")
  config.export.format = name
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    with pytest.raises(UserError, match="cannot write .*free some space"):
      export(config, run)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert {one.name for one in tmp_path.iterdir()} == {"run", "questions.txt"}


@pytest.mark.parametrize("name", ["adapter", "peft", "merged", "orbax"])
def test_neither_the_workdir_nor_the_base_model_is_written_over(workdir, folder, name):
  config, run = workdir("lora")
  config.export.format = name
  before = {path: path.stat().st_mtime_ns for path in (*folder.rglob("*"), *run.rglob("*"))}
  for target, said in ((run, "the workdir itself"), (folder, "the base model itself")):
    config.export.folder = str(target)
    with pytest.raises(UserError, match=said):
      export(config, run)
  assert before == {path: path.stat().st_mtime_ns for path in (*folder.rglob("*"), *run.rglob("*"))}


def test_a_merged_model_takes_the_place_of_an_adapter_of_peft(workdir, tmp_path):
  """transformers would load the adapter, on its base."""
  config, run = workdir("lora")
  for name in ("peft", "merged"):
    config.export.format = name
    export(config, run)
  names = {one.name for one in (tmp_path / "out").iterdir()}
  assert "model.safetensors" in names and not any(one.startswith("adapter") for one in names)


def test_ids_may_be_numbers(workdir, tmp_path):
  config, run = workdir("prompt_tuning")
  config.export.format = "prompt_embeds"
  config.predict.input = str(tmp_path / "questions.jsonl")
  (tmp_path / "questions.jsonl").write_text('{"id": 5, "question": "Peru?"}\n')
  export(config, run)
  with safe_open(tmp_path / "out" / "prompt_embeds.safetensors", framework="np") as rows:
    assert list(rows.keys()) == ["5"]


@pytest.mark.parametrize(
  "method, settings, name, said",
  [
    ("lora", {}, "prompt_embeds", "lora does more than put vectors"),
    ("prompt_tuning", {"prompt": {"layer": "1"}}, "prompt_embeds", "within the stack"),
    ("zero_shot", {}, "orbax", "trains nothing"),
    ("prefix_tuning", {}, "gguf_lora", "not what prefix_tuning trains"),
  ],
)
def test_what_a_format_cannot_hold_is_refused(workdir, tmp_path, method, settings, name, said):
  config, run = workdir(method, **settings)
  config.export.format = name
  with pytest.raises(UserError, match=said):
    export(config, run)
  assert not (tmp_path / "out").exists()


def test_a_question_that_is_too_long_is_refused(workdir, tmp_path):
  config, run = workdir("prompt_tuning")
  config.export.format = "prompt_embeds"
  (tmp_path / "questions.txt").write_text("Peru? " * 200)
  with pytest.raises(UserError, match="the question with id 1 of .* do not fit"):
    export(config, run)
