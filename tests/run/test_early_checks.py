"""Mistakes that are found before any weight is read."""

import importlib
import io
import sys

import pytest

from frozen_jax.backbones import assemble
from frozen_jax.core.errors import UserError
from frozen_jax.data import sources
from frozen_jax.run import export, predict, train
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file


class WeightsRead(Exception):
  """The run went on to its model."""


@pytest.fixture
def no_weights(monkeypatch):
  """No weight can be read, of the LM or of an encoder."""

  def load(*_, **__):
    raise WeightsRead

  for verb in ("train", "evaluate"):
    monkeypatch.setattr(importlib.import_module(f"frozen_jax.run.{verb}"), "load_model", load)
  monkeypatch.setattr(assemble, "load_params", load)


@pytest.fixture
def config(tiny, tmp_path, no_weights):
  """A config whose model must not be read."""
  files = [lines_file(tmp_path / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  return prompt_tuning_config(tiny, *files)


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
    ("stages.prompt.frozen_inputs", ["first=prompt/prompt"], "names .first.; .* method are: none"),
    ("train.batch_size", 3, None),
    ("mesh.data", 3, "train.batch_size 4 does not split into 3"),
    ("mesh.fsdp", 64, "needs 64 devices"),
  ],
)
def test_training(config, tmp_path, key, value, message):
  wrong = with_value(config, key, value)
  if message is None:  # what is right goes on to the weights
    with pytest.raises(WeightsRead):
      train(wrong, tmp_path / "run")
    return
  with pytest.raises(UserError, match=message):
    train(wrong, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


MIDDLE = {"question": "Where is " + "Peru and " * 15 + "Lima?", "answers": ["here"]}
LONG = {"question": "Where is " + "Peru and " * 60 + "Lima?", "answers": ["here"]}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"prompt.length": 127}, "prompt.length 127 fills the model's context of 128"),
    ({"evaluate.max_new_tokens": 120}, "do not fit the model's context of 128"),
    ({"data.test": LONG}, "the question with id 1 of .* do not fit the model's context"),
    ({"data.lengths": (4,)}, "none of .* examples of .*train.* fits into 4 tokens; raise data.len"),
    ({"data.lengths": (32,), "data.train": (MIDDLE,) * 3}, "none of 3 examples of .*made.* fits"),
    (
      {"data.lengths": (32,), "data.validation": (MIDDLE,)},
      "none of 1 examples .*made.* 32 tokens",
    ),
    (
      {"data.lengths": (32,), "data.test": (MIDDLE,)},
      "none of 1 examples of .*made.* fits into 32",
    ),
    (
      {"data.lengths": (32,), "data.held_out": [(MIDDLE | {"question": "Who is " + "she " * 40},)]},
      "none of 1 examples of .*made.* fits",
    ),
    ({"stages.prompt.method": "id_pt"}, "ID-PT needs a text encoder"),
    ({"stages.prompt.method": "lora", "lora.targets": ["attn/z"]}, "this model has attn/k, attn/o"),
    ({"stages.prompt.method": "fine_tuning", "model.quantize": "int8"}, "leave model.quantize"),
    ({"cascade.compute_budget": 1.5}, "has one pass"),
    (
      {
        "cascade.compute_budget": 1.5,
        "stages.prompt.method": "neural_recursion",
        "recursion.first_prompt": "none",
        "recursion.passes": 1,
      },
      "stage prompt has one pass",
    ),
    (
      {
        "cascade.compute_budget": 1.5,
        "stages.prompt.method": "neural_recursion",
        "recursion.first_prompt": "none",
        "data.test": (QUESTIONS[0] | {"dataset": "one"},),
      },
      "is scored by data set, and a gate by question",
    ),
    ({"prompt.per_task": True}, "needs rows that name their data set"),
    ({"evaluate.skills": ["prompt"]}, "after which no stage runs"),
    ({"evaluate.general_text": "nowhere.txt"}, "nowhere.txt"),
    ({"model.name": "nowhere"}, "there is no model 'nowhere'"),
    ({"model.encoder": "nowhere"}, "there is no model 'nowhere'"),
  ],
)
def test_what_config_json_and_the_tokenizer_tell(config, tmp_path, changes, message):
  for key, value in changes.items():
    made = tmp_path / "made.jsonl"
    if isinstance(value, dict):
      value = str(lines_file(made, QUESTIONS[0], value))
    elif isinstance(value, tuple) and isinstance(value[0], dict):
      value = str(lines_file(made, *value))
    elif isinstance(value, list) and isinstance(value[0], tuple):
      value = [str(lines_file(made, *value[0]))]
    config = with_value(config, key, value)
  with pytest.raises(UserError, match=message):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_row_that_fits_is_enough(config, tmp_path):
  file = str(lines_file(tmp_path / "made.jsonl", MIDDLE, *QUESTIONS))
  for key in ("data.train", "data.validation", "data.test"):
    config = with_value(config, key, file)
  with pytest.raises(WeightsRead):
    train(with_value(config, "data.lengths", (32,)), tmp_path / "run")


def test_a_run_of_the_right_sizes_goes_on_to_its_weights(config, tmp_path):
  changes = {"stages.prompt.method": "lora", "model.quantize": "int8", "evaluate.num_beams": 2}
  for key, value in changes.items():
    config = with_value(config, key, value)
  with pytest.raises(WeightsRead):
    train(config, tmp_path / "run")


# --- names of fields

RENAMED = [{"query": row["question"], "answer": row["answers"]} for row in QUESTIONS]


@pytest.mark.parametrize(
  "fields, message",
  [
    (["question=query", "answers=answer"], None),
    (
      ["question=query", "answers=answer", "id=ident"],
      "line 1: no field 'ident'; there are: answer",
    ),
    (
      ["question=query", "answers=answer", "dataset=qery"],
      "'qery'; did you mean query[?]; there are",
    ),
    (["question=query", "answers=anwser.text"], "anwser.text"),
  ],
)
def test_a_field_that_no_source_has(config, tmp_path, fields, message):
  """The training data have their own names, the validation data ours."""
  file = lines_file(tmp_path / "own.jsonl", *RENAMED)
  config = with_value(with_value(config, "data.train", str(file)), "data.fields", fields)
  with pytest.raises(WeightsRead if message is None else UserError, match=message):
    train(config, tmp_path / "run")


def test_a_misspelt_field_of_sources_that_keep_their_names(config, tmp_path):
  """All rows have our names, so the field would be passed over."""
  with pytest.raises(UserError, match="question=qestion names a .* did you mean question[?]"):
    train(with_value(config, "data.fields", ["question=qestion"]), tmp_path / "run")


# --- runs with pipelines

READER = {"reader": {"rankings": ["none", "bm25"], "ranking": "bm25", "retrievers": ["bm25"]}}
READER["reader"] |= {"budgets": [64], "budget": 64, "questions": 3, "recall_at": [1]}
TEXTUAL = {
  "stage_order": ["answer", "select"],
  "stages": {
    "answer": {"method": "prompt_tuning"},
    "select": {"method": "textual_recursion", "frozen_inputs": ["first_prompt=answer/prompt"]},
  },
  "candidates": {"samples": 2, "folds": 2},
}
UNLINKED = with_value(TEXTUAL, "stages.select.frozen_inputs", [])


@pytest.mark.parametrize(
  "pipeline, key, value, message",
  [
    (READER, "reader.budget", 64, None),
    (READER, "reader.budget", 129, "a budget of 129 tokens is more than the 68"),
    (READER, "reader.budgets", [16, 64], "holds no text"),
    (READER, "reader.budgets", [32], "with its template and the budget leaves"),
    (READER, "reader.corpus", "nowhere.jsonl", "reader.corpus: there is no file nowhere.jsonl"),
    (READER, "data.train", "nowhere.jsonl", "nowhere.jsonl"),
    (READER, "data.test", "nowhere.jsonl", "nowhere.jsonl"),
    (TEXTUAL, "candidates.samples", 2, None),
    (TEXTUAL, "candidates.folds", 9, "candidates.folds is 9, but the training questions"),
    (TEXTUAL, "candidates.proposer", "nobody", "candidates.proposer is 'nobody'"),
    (TEXTUAL, "stages.answer.train.steps", 0, "the stage that tunes it does not run"),
    (UNLINKED, "stages.answer.train.steps", 0, "stage answer has 0 steps, so nobody proposes"),
    (TEXTUAL, "stages.select.train.steps", 0, "stage select has 0 steps, so nothing reads"),
    (TEXTUAL, "data.validation", "nowhere.jsonl", "nowhere.jsonl"),
    (TEXTUAL, "data.train", LONG, "do not fit the model's context"),
    (TEXTUAL, "stages.select.data.template", "chat", "have other data.template"),
  ],
)
def test_pipelines(config, tmp_path, pipeline, key, value, message):
  if isinstance(value, dict):
    value = str(lines_file(tmp_path / "long.jsonl", QUESTIONS[0], value))
  config = with_value(config | pipeline, key, value)
  with pytest.raises(WeightsRead if message is None else UserError, match=message):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "reader").exists()


def test_the_other_modes(config, tmp_path, prompt_run):
  with pytest.raises(UserError, match="export.format is 'onnx'; it is one of"):
    export(with_value(config, "export.format", "onnx"), prompt_run.workdir)
  with pytest.raises(UserError, match="nowhere.txt"):
    predict(with_value(config, "predict.input", "nowhere.txt"), prompt_run.workdir)
  from frozen_jax.run import evaluate

  for key, value, message in (
    ("evaluation", "a/b", "evaluation is 'a/b'"),
    ("data.test", "nowhere.jsonl", "nowhere.jsonl"),
    ("evaluate.max_new_tokens", 120, "do not fit the model's context of 128"),
    ("data.lengths", (4,), "none of .* fits into 4 tokens; raise data.lengths"),
  ):
    with pytest.raises(UserError, match=message):
      evaluate(with_value(config, key, value), prompt_run.workdir)


TERSE = {"question": "Where?"}


@pytest.mark.parametrize(
  "changes, rows, message",
  [
    ({}, QUESTIONS, None),
    ({}, [TERSE, LONG], "the question with id 1 of .*rows.jsonl has .* do not fit the model's"),
    ({"prompt.length": 100}, [MIDDLE], "the question with id 0 .* the 100 of the trained prompt"),
    ({"evaluate.max_new_tokens": 120}, QUESTIONS, "with 120 new ones"),
    (TEXTUAL, QUESTIONS, None),
    (TEXTUAL, [TERSE, LONG], "the question with id 1"),
    (READER, [TERSE], None),
    (READER, [TERSE, MIDDLE], "with its template and the budget leaves"),
    (READER, [{"input": "Where?"}], "0 is no question"),
    (READER | {"reader.corpus": "nowhere.jsonl"}, [TERSE], "reader.corpus: there is no file"),
  ],
)
def test_prediction(config, tmp_path, prompt_run, changes, rows, message):
  """The adapter is of one stage, as far as the checks go."""
  rows = [{key: value for key, value in row.items() if key != "answers"} for row in rows]
  config = config | {key: value for key, value in changes.items() if "." not in key}
  for key, value in changes.items():
    config = with_value(config, key, value) if "." in key else config
  config = with_value(config, "predict.input", str(lines_file(tmp_path / "rows.jsonl", *rows)))
  with pytest.raises(WeightsRead if message is None else UserError, match=message):
    predict(config, prompt_run.workdir)


@pytest.mark.parametrize("name", ["nowhere", "a_folder"])
def test_nobody_types_a_question_in_vain(config, prompt_run, monkeypatch, tmp_path, name):
  """Where the model cannot be read, that is said before standard input is."""
  (tmp_path / "a_folder").mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sources, "standard_input_lines", lambda: pytest.fail("input was read"))
  with pytest.raises(UserError, match=name):
    predict(with_value(config, "model.name", name), prompt_run.workdir)


def test_what_is_typed_is_checked_before_any_weight_too(config, prompt_run, monkeypatch):
  monkeypatch.setattr(sys, "stdin", io.StringIO(f"Where?\n{LONG['question']}\n"))
  with pytest.raises(UserError, match="the question with id 2 of standard input"):
    predict(config, prompt_run.workdir)
