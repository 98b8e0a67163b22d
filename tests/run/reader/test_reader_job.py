"""The reader's job from questions to its table: each step alone, killed, rerun, refused."""

import io
import json
import logging
import shutil

import pytest

from frozen_jax import run
from frozen_jax.core.errors import UserError
from frozen_jax.run.reader import job as job_module
from frozen_jax.run.reader import pack, re_rank
from frozen_jax.tools import ask
from tests.run.made import outputs


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_whole_job_and_again_from_where_it_was_killed(
  make_config, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO)
  config = make_config()
  results = run.train(config, tmp_path / "whole")
  table = results["rows"]
  assert {"none 110", "bm25 110", "re_ranked 110", "blended 110", "gold 110", "reader"} <= set(
    table
  )
  assert table["gold 110"]["gold_read"] == 100.0 and table["none 110"]["gold_read"] == 0.0
  assert table["reader"] == table["blended 110"] and table["closed_book"]["tokens_read"] < 30
  assert "loss" in table["reader"] and "loss" not in table["gold 110"]
  low, mean, high = (table["reader"][f"exact_match{end}"] for end in ("_low", "", "_high"))
  assert low <= mean <= high
  assert table["bm25 110"]["tokens_read"] <= 110 - 8 - 4
  assert results["retrieval"]["bm25"]["recall_at_4"] == 100.0
  assert results["retrieval"]["fused"]["tokens_retrieved"] > 0
  assert results["frozen_unchanged"]

  ranked, packed = re_rank.re_ranked, pack.packed

  def killed_at_the_first_row(of):
    def made(*arguments):
      yield next(iter(of(*arguments)))
      raise KeyboardInterrupt

    return made

  parts = tmp_path / "parts"
  for module, name, of in ((re_rank, "re_ranked", ranked), (pack, "packed", packed)):
    monkeypatch.setattr(module, name, killed_at_the_first_row(of))
    with pytest.raises(KeyboardInterrupt):
      run.train(config, parts)
    monkeypatch.setattr(module, name, of)
  caplog.clear()
  again = run.train(config, parts)
  assert "retrieved_train.jsonl: unchanged" in caplog.text and "re_ranker: unchanged" in caplog.text
  assert outputs(parts / "reader") == outputs(tmp_path / "whole" / "reader")
  assert again["rows"] == table


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
  """The workdir of a finished run."""
  folder = tmp_path_factory.mktemp("finished") / "run"
  run.train(make_config(), folder)
  return folder


def test_a_finished_reader_answers_with_the_passages_that_it_read(
  finished, make_config, tmp_path, capsys
):
  path = tmp_path / "asked.txt"
  path.write_text("What is the capital of Mali?\n")
  (answer,) = run.predict(make_config(**{"predict.input": str(path)}), finished)
  assert answer["passages"] and "capital of Mali" in answer["input"]
  scores = [one["score"] for one in answer["passages"]]
  assert scores == sorted(scores, reverse=True)
  capsys.readouterr()
  assert ask.main([str(finished), "What is the capital of Mali?"]) == 0
  told = capsys.readouterr().out.splitlines()
  assert told[0] == answer["prediction"]
  assert [line.split()[1] for line in told[2:]] == [one["id"] for one in answer["passages"]]


def test_a_reader_of_blended_passages(make_config, tmp_path):
  given = {"reader.read": "blended", "reader.orders": ("bm25",)}
  done = run.train(make_config(**given, until="re_rank"), tmp_path / "run")
  assert {"re_ranked", "blended"} <= set(done["retrieval"])
  made = {path.name for path in (tmp_path / "run" / "reader").glob("*.jsonl")}
  assert "blended_test.jsonl" in made, "the recall is that of the test questions"
  assert "re_ranked_train.jsonl" not in made, "these are for the packing"
  table = run.train(make_config(**given), tmp_path / "run")["rows"]
  assert {"bm25 110", "reader"} <= set(table)
  weights = json.loads((tmp_path / "run" / "reader" / "blend_weights.json").read_text())
  assert set(weights) == {"re_ranker", "bm25", "dense"}
  path = tmp_path / "asked.txt"
  path.write_text("What is the capital of Mali?\n")
  (answer,) = run.predict(make_config(**given, **{"predict.input": str(path)}), tmp_path / "run")
  scores = [one["score"] for one in answer["passages"]]
  assert scores and scores == sorted(scores, reverse=True)


def test_questions_are_asked_one_after_another(finished, monkeypatch, capsys):
  monkeypatch.setattr("sys.stdin", io.StringIO("Where is Lima?\nWhere is Cairo?\n\nlost\n"))
  assert ask.main([str(finished)]) == 0
  assert capsys.readouterr().out.count("with their scores") == 2


def test_asking_where_no_run_is(tmp_path, capsys):
  assert ask.main([str(tmp_path), "Where is Lima?"]) == 2
  assert "error:" in capsys.readouterr().err


def test_a_finished_reader_is_scored_on_other_questions(finished, make_config, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  fewer = run.evaluate(make_config(**{"evaluate.max_examples": 1}), workdir)
  assert fewer["retrieval"]["bm25"]["recall_at_4"] == 100.0


def test_a_moved_workdir_goes_on(finished, make_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  moved = tmp_path / "moved"
  shutil.copytree(finished, moved)
  before = json.loads((moved / "results.json").read_text())
  (moved / "results.json").unlink()
  after = run.train(make_config(), moved)
  assert after["rows"] == before["rows"]
  assert "made in" not in caplog.text


def test_training_and_test_contexts_are_packed_alike(make_config, tmp_path):
  config = make_config(**{"until": "retrieve", "reader.read": "bm25"})
  done = run.train(config, tmp_path)
  assert "metrics" not in done, "main says where the adapter is of a whole run alone"
  assert set(done["files"]) == {f"retrieved_{s}.jsonl" for s in job_module.SPLITS}
  assert set(done["retrieval"]) == {"bm25", "dense", "fused"}
  assert done["retrieval"]["bm25"]["recall_at_4"] == 100.0
  config = make_config(
    **{"until": "pack", "reader.read": "bm25", "reader.orders": ("bm25", "none")}
  )
  done = run.train(config, tmp_path)
  folder = tmp_path / "reader"
  for split, count in (("train", 2), ("validation", 2), ("test", 2)):
    packed = rows(folder / f"packed_bm25_110_{split}.jsonl")
    found = rows(folder / f"retrieved_{split}.jsonl")
    assert len(packed) == count
    for row, of in zip(packed, found, strict=False):
      ids = [one["id"] for one in row["passages"]]
      assert ids == of["orders"]["bm25"][: len(ids)] and ids and row["id"] == of["id"]
      assert row["input"].endswith(f"Question: {of['question']}\nAnswer:")
      assert row["target"] == of["answers"][0]
  assert rows(folder / "packed_none_110_test.jsonl")[0]["passages"] == []
  assert not (folder / "re_ranker").exists()


def test_questions_of_several_files_keep_their_data_sets(make_config, files, tmp_path):
  more = shutil.copy(files["data.train"], tmp_path / "more.jsonl")
  both = f"{files['data.train']},{more}"
  run.train(make_config(**{"until": "re_ranker", "data.train": both}), tmp_path / "run")
  found = rows(tmp_path / "run" / "reader" / "retrieved_train.jsonl")
  assert [row["dataset"] for row in found] == ["train"] * 5 + ["more"] * 5


def test_fusion_by_a_weighted_sum_of_scores(make_config, tmp_path):
  weighted = {"until": "retrieve", "reader.fusion": "weighted_sum"}
  for weights, first in (((1.0, 0.0), "bm25"), ((0.0, 1.0), "dense")):
    run.train(make_config(**weighted, **{"reader.weights": weights}), tmp_path)
    for row in rows(tmp_path / "reader" / "retrieved_train.jsonl"):
      fused = [(one["id"], one["score"]) for one in row["ctxs"]]
      counted = [id for id, score in fused if score > 0]
      assert counted and counted == row["orders"][first][: len(counted)]


@pytest.mark.parametrize("method", ["lora", "id_pt"])
def test_other_methods_read(make_config, bi_encoder, tmp_path, method):
  given = {"reader.read": "bm25", "reader.orders": ("bm25",), "model.encoder": str(bi_encoder)}
  results = run.train(make_config(**given, **{"stages.reader.method": method}), tmp_path)
  assert results["method"] == method and results["frozen_unchanged"]
  assert results["rows"]["reader"] == results["rows"]["bm25 110"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"reader.read": "best"}, "'best' is no order of passages"),
    ({"reader.budgets": (500,)}, "a budget of 500 tokens is more than the 124"),
    ({"reader.retrievers": ("spider",)}, "reader.retrievers names spider"),
    ({"reader.retrievers": ("dense",)}, "the order bm25 needs bm25 among reader.retrievers"),
    ({"reader.questions": 0}, "reader.questions is 0"),
    ({"reader.fusion": "luck"}, "reader.fusion is 'luck'; there are: reciprocal_ranks, weighted"),
    (
      {"reader.fusion": "weighted_sum", "reader.weights": (1.0,)},
      "reader.weights is .* give one from 0 up to each",
    ),
    ({"until": "never"}, "until is 'never'"),
    ({"reader.re_ranker.positives": "some"}, "reader.re_ranker.positives is 'some'"),
  ],
)
def test_mistakes(make_config, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    run.train(make_config(**changes), tmp_path)


@pytest.mark.parametrize(
  "positives, message",
  [([], "has no passage that answers it"), (["Atlantis-0"], "question Peru: .* no passage of")],
)
def test_questions_without_their_passage(make_config, tmp_path, positives, message):
  row = {"id": "Peru", "question": "What is the capital of Peru?", "answers": ["Lima"]}
  path = tmp_path / "train.jsonl"
  path.write_text((json.dumps(row | {"positive_ids": positives}) + "\n") * 3)
  with pytest.raises(UserError, match=message):
    run.train(make_config(**{"data.train": str(path)}), tmp_path / "run")
