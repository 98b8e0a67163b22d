"""Textual recursion over a frozen reader: both pipelines in one run, and the gate on top."""

import json
import shutil

import pytest

import frozen_jax
from frozen_jax import run
from frozen_jax.config.config_file import load_config
from frozen_jax.config.presets import shrink
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.run.results.records import table_rows
from frozen_jax.tools import ask
from tests.pipelines.retrieve_read.conftest import bi_encoder, files  # noqa: F401
from tests.run.conftest import ROOT


@pytest.fixture(scope="module")
def make_config(tiny, bi_encoder, files):  # noqa: F811
  """`make_config(**{"dotted.key": value})`: the config of both on tiny models and files."""

  def make(**changes):
    config = load_config(f"{ROOT}/configs/textual_recursion.py:reader")
    shrink(config)
    config.candidates.update({"samples": 4, "folds": 2, "permutations": 2})
    given = {
      "model.name": str(tiny),
      "mesh.data": 1,
      "prompt.length": 4,
      "data.lengths": (120,),
      "stages.select.train.steps": 3,
      "train.batch_size": 2,
      "evaluate.max_new_tokens": 4,
      "cascade.compute_budget": 1.5,
      "reader.encoder": str(bi_encoder),
      "reader.questions": 4,
      "reader.depth": 12,
      "reader.recall_at": (1, 4),
      "reader.budgets": (100,),
      "reader.budget": 100,
      "reader.ranking": "bm25",
      "reader.rankings": ("none", "fused"),
      "candidates.template.prompt": "{question}\n{candidates}\nAnswer:",
    }
    for key, value in (given | {k: str(v) for k, v in files.items()} | changes).items():
      config.update_from_flattened_dict({key: value})
    return config

  return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
  """The workdir of a finished run, and its record."""
  folder = tmp_path_factory.mktemp("both") / "run"
  return folder, run.train(make_config(), folder)


ROWS = ["zero_shot", "none 100", "fused 100", "answer", "majority", "likeliest", "oracle"]


def test_the_table_has_the_rows_of_both(finished):
  folder, record = finished
  table = table_rows(record)
  assert list(table) == [*ROWS, "gated 1.5", "select"]
  assert table["none 100"]["gold_read"] == 0 and table["answer"]["tokens_read"] > 30
  assert set(record["retrieval"]) == {"bm25", "dense", "fused"} and record["frozen_unchanged"]
  assert record["gate"]["validation"]["compute"] <= 1.5
  stages = {json.loads(line)["stage"] for line in (folder / "metrics.jsonl").open()}
  assert stages == {"answer", "answer_fold0", "answer_fold1", "select"}


def test_pass_one_reads_passages_and_pass_two_what_it_proposes(finished):
  folder, _ = finished
  packed = list(JsonLines(folder / "reader" / "packed_bm25_100_test.jsonl"))
  shown = list(JsonLines(folder / "candidates" / "rendered_test.jsonl"))
  for read, text in zip(packed, shown, strict=True):
    assert read["passages"] and text["passages"] == read["passages"]
    question = read["original_question"]
    assert text["input"].startswith(f"{question}\n") and text["original_question"] == question
  folds = [JsonLines(folder / "candidates" / f"questions_fold{fold}.jsonl") for fold in range(2)]
  assert sum(map(len, folds)) == 4, "reader.questions, each in one of two folds"
  assert all("Question: " in row["input"] for fold in folds for row in fold)


def test_prediction_goes_through_both(finished, make_config, files, lm, tmp_path, capsys):  # noqa: F811
  folder = shutil.copytree(finished[0], tmp_path / "run")
  config = make_config(**{"predict.input": str(files["data.test"])})
  of_test = list(JsonLines(folder / "predictions.jsonl"))
  predicted = run.predict(config, folder)
  gated = [row["predictions"]["gated 1.5"] for row in of_test]
  assert [row["prediction"] for row in predicted] == gated
  assert all(row["passages"] for row in predicted)
  capsys.readouterr()
  (first, *_) = JsonLines(files["data.test"])
  assert ask.main([str(folder), first["question"]]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == gated[0] and lines[1].startswith("read ")
  model = frozen_jax.load_adapter(folder, lm)
  packed = list(JsonLines(folder / "reader" / "packed_bm25_100_test.jsonl"))
  assert model.answer(packed) == gated


def test_evaluation_gives_the_same_table(finished, make_config, caplog):
  folder, record = finished
  caplog.set_level("INFO")
  again = run.evaluate(make_config(evaluation="again"), folder)
  assert "made in" not in caplog.text
  drop = lambda row: {key: value for key, value in row.items() if key != "tokens_per_second"}
  before, after = table_rows(record), table_rows(again)
  assert list(after) == list(before)
  assert {name: drop(row) for name, row in after.items()} == {
    name: drop(row) for name, row in before.items()
  }
  assert again["gate"] == record["gate"] and again["retrieval"] == record["retrieval"]
