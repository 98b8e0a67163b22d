"""Exports of a LoRA on the small model as whole commands: merged, with their cards, to the hub."""

import dataclasses
import json
import re
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax.core.files import write_json
from frozen_jax.export.peft import BaseModel
from frozen_jax.methods.lora import Lora, LoraSettings
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.run.results import model_card
from tests import hub_server
from tests.processes import ROOT

CONFIG, QUESTION = "lora.py:smoke", "What is the capital of Peru?"
RECORD = {
  "command": "frozen-jax --config=lora",
  "version": "0.1.0",
  "commit": "abc",
  "test": "tests.jsonl",
  "metrics": {"exact_match": 25.0, "exact_match_low": 12.5, "exact_match_high": 37.5},
  "baseline": {"name": "zero_shot", "exact_match": 0.0},
  "rows": {},
  "table": {"rows": ["zero_shot", "lora"], "metrics": "lora", "baseline": "zero_shot"},
}
AGAIN = """
import sys
import frozen_jax
from frozen_jax.core.errors import exit_status
from frozen_jax.run.initial_parts import load_initial_parts
def answer():
  lm = frozen_jax.load_frozen(sys.argv[1])
  print(frozen_jax.load_adapter(sys.argv[2], lm).generate([sys.argv[3]], max_new_tokens=4))
  print(sorted(load_initial_parts(sys.argv[2], lm, ()).trees))
sys.exit(exit_status(answer))
"""


@pytest.fixture(scope="module")
def workdir(lm, tmp_path_factory):
  """A workdir with what LoRA might have trained on the small model."""
  lora, noise = LoraSettings(rank=2, alpha=4.0), np.random.default_rng(0)
  method = Lora.build(lm, {"lora": lora})
  start = method.init(lm, jax.random.key(0))
  trained = jax.tree.map(lambda leaf: np.float32(leaf + 0.1 * noise.normal(size=leaf.shape)), start)
  folder = tmp_path_factory.mktemp("runs") / "lora"
  TunedModel(lm, method, trained, sections={"lora": lora}).save(folder / "adapter")
  write_json(folder / "results.json", RECORD)
  return folder


@pytest.fixture
def command(program, workdir):
  """`command(form, folder, *arguments)`: of an export, without the interpreter."""

  def of(form, folder, *arguments):
    given = ("--mode=export", f"--config.export.format={form}", f"--config.export.folder={folder}")
    return program.command(CONFIG, f"--workdir={workdir}", *given, *arguments)

  return of


@pytest.fixture
def exported(call, command):
  """`exported(form, folder)`: what the export says."""

  def run(form, folder):
    status, out, err = call(*command(form, folder)[2:])
    assert status == 0, err
    return out

  return run


def page_lines(title, first):
  """The indented block of docs/exports.md, under a title, that begins with this line."""
  text = (ROOT / "docs" / "exports.md").read_text()
  _, _, section = text.partition(f"\n## {title}\n")
  block = re.search(rf"^    {re.escape(first)}\n(?:(?:    .*)?\n)*", section, flags=re.MULTILINE)
  return "\n".join(line.removeprefix("    ") for line in block[0].splitlines())


def test_the_lines_of_the_page_answer_as_the_adapter(
  exported, workdir, lm, tmp_path, monkeypatch, capsys
):
  said = exported("merged", tmp_path / "my_model")
  assert "for transformers.AutoModelForCausalLM" in said
  lines = page_lines("merged", "import transformers")
  assert QUESTION in lines
  monkeypatch.chdir(tmp_path)
  capsys.readouterr()
  exec(lines, {})
  adapter = frozen_jax.load_adapter(workdir, lm)
  (wanted,) = adapter.generate([QUESTION], max_new_tokens=16)
  assert capsys.readouterr().out.strip() == wanted and wanted != lm.generate([QUESTION])[0]


def test_an_older_export_is_replaced_and_other_files_stay(exported, tmp_path):
  folder = tmp_path / "model"
  folder.mkdir()
  for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "mine.txt"):
    (folder / name).write_text("old")
  exported("merged", folder)
  names = {path.name for path in folder.iterdir()}
  assert {"mine.txt", "model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
  assert not {name for name in names if "00001" in name or "index" in name}


def test_into_the_folder_of_the_base_is_refused(command, refused, tiny):
  before = {path: path.read_bytes() for path in tiny.iterdir()}
  assert "is the folder of the base model itself" in refused(*command("merged", tiny)[2:])
  assert {path: path.read_bytes() for path in tiny.iterdir()} == before


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_card_says_what_it_is_and_how_to_use_it(form, exported, tiny, lm, tmp_path):
  exported(form, tmp_path / "mine")
  card = huggingface_hub.ModelCard.load(tmp_path / "mine" / "README.md")
  assert card.data.base_model is None and set(card.data.tags) == {"frozen_jax", "lora"}
  assert card.data.library_name == {"adapter": "frozen_jax", "merged": "transformers"}[form]
  for said in (lm.fingerprint, str(tiny), "Question: {question}", RECORD["command"], "rank"):
    assert said in card.text, said
  assert re.search(r"lora +25\.\d+ +12\.5", card.text) and "On `tests.jsonl`" in card.text
  loads = {"adapter": "load_adapter(", "merged": "AutoModelForCausalLM.from_pretrained("}
  assert [one for one, line in loads.items() if line in card.text] == [form]


def test_the_metadata_name_a_base_on_the_hub_its_licence_and_the_data(
  workdir, lm, tiny, tmp_path, monkeypatch
):
  base = shutil.copytree(tiny, tmp_path / "base")
  (base / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
  monkeypatch.setattr(model_card, "base_model", lambda _: BaseModel("someone/tiny", "ab12", True))
  model = frozen_jax.load_adapter(workdir, dataclasses.replace(lm, name=str(base)))
  data = {"train": "hf:some/questions/train", "validation": "x.jsonl,hf:glue:sst2/dev"}
  data["test"] = "hf:unseen/test"
  for form, relation in (("adapter", "adapter"), ("merged", "finetune")):
    card = huggingface_hub.ModelCard(model_card.model_card(form, model, data, {}, in_peft=True))
    found = card.data.to_dict()
    assert (found["base_model"], found["base_model_relation"]) == ("someone/tiny", relation)
    assert (found["license"], found["datasets"]) == ("mit", ["some/questions", "glue"])
    assert "`ab12`" in card.text and "x.jsonl" in card.text and "## Scores" not in card.text
    assert ("export.format=peft" in card.text) == (form == "adapter")


@pytest.fixture
def hub(tmp_path):
  (tmp_path / "there").mkdir()
  with hub_server.serving(tmp_path / "there", tmp_path / "home") as run:
    yield run


def test_pushed_and_loaded_from_the_hub(hub, command, workdir, lm, tiny, tmp_path):
  folder = tmp_path / "mine"
  (folder / "private").mkdir(parents=True)
  (folder / "private" / "notes.txt").write_text("not an export")
  push = command("adapter", folder, "--config.export.push=owner/name")
  status, out, err = hub(*push, HF_TOKEN="hf_secret")
  assert status == 0 and f"/owner/name/commit/{hub_server.COMMIT}" in out, err
  (made,) = hub.made
  assert (made["organization"], made["name"], made["visibility"]) == ("owner", "name", "private")
  there = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
  assert there.keys() == {"README.md", "adapter.json", "adapter.safetensors"}
  assert all((folder / name).read_bytes() == data for name, data in there.items())

  status, out, err = hub("-c", AGAIN, tiny, "hf:owner/name", QUESTION)
  answers = frozen_jax.load_adapter(workdir, lm).generate([QUESTION], max_new_tokens=4)
  assert status == 0 and out.splitlines() == [str(answers), "['lora']"], err


def test_a_merged_model_on_the_hub_replaces_older_shards(hub, command, tmp_path):
  (tmp_path / "there" / "model-00001-of-00002.safetensors").write_bytes(b"old")
  (tmp_path / "there" / "LICENSE").write_bytes(b"mine")
  push = command("merged", tmp_path / "mine", "--config.export.push=owner/name")
  status, _, err = hub(*push, HF_TOKEN="hf_secret")
  there = {path.name for path in (tmp_path / "there").iterdir()}
  assert status == 0 and {"LICENSE", "model.safetensors", "config.json"} <= there, err
  assert "model-00001-of-00002.safetensors" not in there


def test_a_push_without_a_token_leaves_the_local_export(hub, command, tmp_path):
  push = command("adapter", tmp_path / "mine", "--config.export.push=owner/name")
  status, _, err = hub(*push)
  assert status == 2 and "error: cannot push to owner/name on the hub: run `hf auth login`" in err
  assert (tmp_path / "mine" / "adapter.json").exists()
  assert list((tmp_path / "there").iterdir()) == []


def test_what_is_no_adapter_on_the_hub(hub, tiny, tmp_path):
  (tmp_path / "there" / "config.json").write_text(json.dumps({}))
  status, _, err = hub("-c", AGAIN, tiny, "hf:owner/name", QUESTION)
  assert status == 2 and "error: hf:owner/name holds no adapter" in err
  assert not [path for _, path, *_ in hub.asked if path.endswith("config.json")]


def test_a_repository_is_named_by_owner_and_name(command, refused, tmp_path):
  said = refused(*command("adapter", tmp_path, "--config.export.push=name")[2:])
  assert "export.push is 'name'" in said and "owner/name" in said
