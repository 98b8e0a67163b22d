"""What a workdir with a complete run accepts, and what is another run."""

import json
import shutil

import pytest

import frozen_jax
from frozen_jax.core.errors import UserError
from frozen_jax.run.settings import resolve_run
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file


@pytest.fixture(scope="module")
def complete(tiny, tmp_path_factory):
  """(config, folder with the data and the workdir `run`) of a complete run."""
  folder = tmp_path_factory.mktemp("complete")
  files = [lines_file(folder / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  config = prompt_tuning_config(tiny, *files)
  config["evaluate"] = {"max_examples": 1, "max_new_tokens": 2}
  frozen_jax.run.train(config, folder / "run")
  return config, folder


@pytest.fixture
def again(complete, tmp_path):
  """`again({dotted key: value})`: the command once more -> what it returns; the config's files are
  those of `again.folder`, a copy.
  """
  config, folder = complete
  own = shutil.copytree(folder, tmp_path / "copy")

  def run(changes=()):
    changed = config
    for split in ("train", "validation"):
      changed = with_value(changed, f"data.{split}", str(own / f"{split}.jsonl"))
    for key, value in dict(changes).items():
      changed = with_value(changed, key, value)
    return frozen_jax.run.train(changed, own / "run")

  run.folder, run.test = own, config["data"]["test"]
  return run


@pytest.mark.parametrize(
  "changes",
  [{}, {"mesh.data": 2}, {"train.log_every": 1}, {"evaluate.max_examples": 3}, {"baseline": "x"}],
  ids=str,
)
def test_it_is_reported(again, changes):
  assert again(changes) == json.loads((again.folder / "run" / "results.json").read_text())


def test_what_would_be_scored_otherwise_is_said(again, capsys):
  again({"evaluate.max_examples": 3, "cascade.compute_budget": 1.5, "baseline": "prompt"})
  said = "another evaluate.max_examples, cascade.compute_budget, baseline; --mode=evaluate"
  assert said in capsys.readouterr().out


def test_the_same_model_in_another_folder(again, tiny, tmp_path):
  record = again({"model.name": str(shutil.copytree(tiny, tmp_path / "model"))})
  assert record == json.loads((again.folder / "run" / "results.json").read_text())


def test_data_that_are_gone_under_their_name(again, complete):
  config, _ = complete
  again({"data.train": config["data"]["train"]})
  with pytest.raises(UserError, match="nowhere"):
    again({"data.train": str(again.folder / "nowhere.jsonl")})


@pytest.mark.parametrize("split", ["train", "validation"])
def test_not_with_data_that_were_rewritten_in_place(again, split):
  path = again.folder / f"{split}.jsonl"
  path.write_bytes(path.read_bytes().replace(b"Lima", b"Bari"))
  with pytest.raises(UserError, match=rf"another config \(different: data.{split}"):
    again()


@pytest.mark.parametrize(
  "changes, key",
  [
    ({"seed": 5}, "seed"),
    ({"prompt.length": 9}, "prompt.length"),
    ({"data.template": "Q {question}"}, "data.template"),
    ({"stages.prompt.method": "lora"}, "stages.prompt.method"),
    ({"stages.prompt.method": "lora", "stages.prompt.lora": {"rank": 2}}, "stages.prompt.method"),
    ({"stages.prompt.prompt": {"length": 9}}, "prompt.length"),
  ],
  ids=str,
)
def test_an_evaluation_records_what_was_trained_not_what_the_config_says(
  again, complete, changes, key, caplog
):
  config, _ = complete
  changed = config
  for name, value in changes.items():
    changed = with_value(changed, name, value)
  record = frozen_jax.run.evaluate(with_value(changed, "evaluation", "mine"), again.folder / "run")
  assert f"config.{key}: not used" in caplog.text
  trained = json.loads((again.folder / "run" / "results.json").read_text())
  assert {name: record[name] for name in ("seed", "method")} == {
    "seed": 0,
    "method": "prompt_tuning",
  }
  assert record["metrics"].items() <= trained["metrics"].items()
  folder = again.folder / "run" / "evaluations" / "mine"
  (stage,) = resolve_run(json.loads((folder / "config.json").read_text())).stages
  assert (stage.method, stage.seed, stage.prompt.length) == ("prompt_tuning", 0, 4)
  assert stage.data.template == "plain"


def test_test_data_that_were_rewritten_in_place_are_said(again, capsys):
  path = lines_file(again.folder / "test.jsonl", *QUESTIONS)
  again({"data.test": str(path)})
  assert "scored with another data.test;" in capsys.readouterr().out
  own = again.folder / "run" / "config.json"  # a run that was scored on it
  own.write_text(own.read_text().replace(str(again.test), str(path)))
  again({"data.test": str(path)})
  assert "another" not in capsys.readouterr().out
  path.write_bytes(path.read_bytes().replace(b"Lima", b"Bari"))
  again({"data.test": str(path)})
  assert "scored with another data.test;" in capsys.readouterr().out


def replaced(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
  "change",
  [
    lambda model, other: shutil.copy(other / "model.safetensors", model),
    lambda model, other: replaced(
      model / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'
    ),
    lambda model, other: replaced(
      model / "tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true'
    ),
    lambda model, other: replaced(
      model / "tokenizer_config.json", '"eos_token": "<|end|>"', '"eos_token": "a"'
    ),
  ],
  ids=["weights", "sizes", "tokenizer", "end token"],
)
def test_not_with_a_model_that_was_rewritten_in_place(again, tiny, make_folder, tmp_path, change):
  model = shutil.copytree(tiny, tmp_path / "model")
  again({"model.name": str(model)})
  own = again.folder / "run" / "config.json"  # as if it had been trained from there
  own.write_text(own.read_text().replace(str(tiny), str(model)))
  change(model, make_folder(seed=1))
  with pytest.raises(UserError, match=r"another config \(different: model.name\)"):
    again({"model.name": str(model)})


def test_a_model_that_is_gone_under_its_name(again, tiny, tmp_path):
  own = again.folder / "run" / "config.json"
  own.write_text(own.read_text().replace(str(tiny), str(tmp_path / "gone")))
  record = json.loads((again.folder / "run" / "results.json").read_text())
  assert again({"model.name": str(tmp_path / "gone")}) == record


def test_not_with_another_model(again, make_folder):
  with pytest.raises(UserError, match=r"another config \(different: model.name\)"):
    again({"model.name": str(make_folder(seed=1))})


@pytest.mark.parametrize(
  "changes, names",
  [
    ({"init_from": "elsewhere"}, "init_from"),
    ({"seed": 5}, "seed"),
    ({"stages.prompt.init_from": ["prompt=prompt/prompt"]}, "stages.prompt.init_from"),
    ({"reader": {"ranking": "bm25"}}, "reader"),
    ({"candidates": {"samples": 3}}, "candidates"),
  ],
)
def test_not_with_what_it_started_from_or_read(again, changes, names):
  with pytest.raises(UserError, match=rf"another config \(different: .*{names}"):
    again(changes)
