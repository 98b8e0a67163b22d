"""A frozen reader from questions to its table: each step alone, killed, rerun, refused."""

import importlib
import io
import json
import logging
import shutil
import signal

import pytest
from safetensors.numpy import load_file, save_file

from frozen_jax import run
from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.pipelines.retrieve_read import pack, re_rank
from frozen_jax.pipelines.retrieve_read.pipeline import SPLITS
from frozen_jax.run.results.records import table_rows
from frozen_jax.tools import ask
from tests.pipelines.artifact_digests import artifact_digests
from tests.run.test_signals import made_an_error, passed_on

RANKINGS = ("none", "bm25", "re_ranked", "blended", "gold")  # of the config
READER_ALONE = {"stage_order": ("reader",), "baseline": "zero_shot"}


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def figures(record):
  """The rows of a table without how long the training took."""
  table = table_rows(record)
  for row in table.values():
    row.pop("tokens_per_second", None)
  return table


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
  """The workdir of a finished run."""
  folder = tmp_path_factory.mktemp("finished") / "run"
  run.train(make_config(), folder)
  return folder


@pytest.fixture(scope="module")
def results(finished):
  return json.loads((finished / "results.json").read_text())


def test_the_table_has_every_ranking(results):
  table = figures(results)
  packs = [f"{ranking} 110" for ranking in RANKINGS]
  assert list(table) == ["zero_shot", *packs, "closed_book", "reader"]
  assert table["gold 110"]["gold_read"] == 100.0 and table["none 110"]["gold_read"] == 0.0
  assert table["reader"] == table["blended 110"] and table["closed_book"]["tokens_read"] < 30
  assert "loss" in table["reader"] and "loss" not in table["gold 110"]
  low, mean, high = (table["reader"][f"exact_match{end}"] for end in ("_low", "", "_high"))
  assert low <= mean <= high
  assert table["bm25 110"]["tokens_read"] <= 110 - 8 - 4
  assert results["retrieval"]["bm25"]["recall_at_4"] == 100.0
  assert results["retrieval"]["fused"]["tokens_retrieved"] > 0
  assert results["frozen_unchanged"]


def test_a_killed_run_continues_where_it_was(
  finished, results, make_config, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO)
  config = make_config()

  def killed_at_the_first_row(make):
    def made(*arguments):
      yield next(iter(make(*arguments)))
      raise KeyboardInterrupt

    return made

  for module, name in ((re_rank, "re_rank"), (pack, "pack_rows")):
    make = getattr(module, name)
    monkeypatch.setattr(module, name, killed_at_the_first_row(make))
    with pytest.raises(KeyboardInterrupt):
      run.train(config, tmp_path)
    monkeypatch.setattr(module, name, make)
  caplog.clear()
  again = run.train(config, tmp_path)
  assert "retrieved_train.jsonl: unchanged" in caplog.text and "re_ranker: unchanged" in caplog.text
  assert artifact_digests(tmp_path / "reader") == artifact_digests(finished / "reader")
  assert figures(again) == figures(results)


STOPS = [
  ("retrieve", "build_bm25"),
  ("retrieve", "build_dense"),
  ("re_rank", "training_groups"),
  ("re_rank", "read_cross_encoder"),
  ("re_rank", "fit"),
  ("re_rank", "write_cross_encoder"),
  ("re_rank", "re_rank"),
  ("pack", "pack_rows"),
]


def test_a_run_that_is_asked_to_stop_in_each_of_its_steps(
  finished, results, make_config, tmp_path, monkeypatch
):
  """Time and again, by either signal; in the end it is as one that was never stopped."""
  for number, (module, name) in enumerate(STOPS):
    owner = importlib.import_module(f"frozen_jax.pipelines.retrieve_read.{module}")
    how, sign = ((passed_on, signal.SIGTERM), (made_an_error, signal.SIGINT))[number % 2]
    with monkeypatch.context() as patched:
      patched.setattr(owner, name, how(getattr(owner, name), sign))
      with pytest.raises(Interrupted, match=r"interrupted at step \d+"):
        run.train(make_config(), tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert not list((tmp_path / "reader").glob(".*")), name
  again = run.train(make_config(), tmp_path)
  assert artifact_digests(tmp_path / "reader") == artifact_digests(finished / "reader")
  assert figures(again) == figures(results)


def test_a_finished_reader_answers_with_the_passages_that_it_read(
  finished, make_config, tmp_path, capsys
):
  path = tmp_path / "asked.txt"
  path.write_text("What is the capital of Mali?\n")
  workdir = shutil.copytree(finished, tmp_path / "run")  # the predictions are written into it
  (answer,) = run.predict(make_config(**{"predict.input": str(path)}), workdir)
  assert answer["passages"] and "capital of Mali" in answer["input"]
  scores = [one["score"] for one in answer["passages"]]
  assert scores == sorted(scores, reverse=True)
  capsys.readouterr()
  assert ask.main([str(finished), "What is the capital of Mali?"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == answer["prediction"]
  assert [line.split()[1] for line in lines[2:]] == [one["id"] for one in answer["passages"]]


def test_a_reader_of_blended_passages(make_config, tmp_path):
  given = {"reader.ranking": "blended", "reader.rankings": ("bm25",)} | READER_ALONE
  done = run.train(make_config(**given, stop_after="re_rank"), tmp_path / "run")
  assert {"re_ranked", "blended"} <= set(done["retrieval"])
  made = {path.name for path in (tmp_path / "run" / "reader").glob("*.jsonl")}
  assert "blended_test.jsonl" in made, "the recall is that of the test questions"
  assert "re_ranked_train.jsonl" not in made, "these are for the packing"
  table = figures(run.train(make_config(**given), tmp_path / "run"))
  assert list(table) == ["zero_shot", "bm25 110", "reader"]
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


def test_a_finished_reader_is_scored_on_other_questions(
  finished, results, make_config, tmp_path, caplog
):
  caplog.set_level(logging.INFO)
  workdir = shutil.copytree(finished, tmp_path / "run")
  again = run.evaluate(make_config(evaluation="again"), workdir)
  assert "made in" not in caplog.text, "the same questions, models and settings"
  assert list(table_rows(again)) == list(table_rows(results))
  assert figures(again) == figures(results) and again["retrieval"] == results["retrieval"]
  folder = workdir / "evaluations" / "again"
  assert figures(json.loads((folder / "results.json").read_text())) == figures(again)
  predictions = "predictions.jsonl"
  assert (folder / predictions).read_bytes() == (finished / predictions).read_bytes()
  for name in ("results.json", predictions):
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), "of the training"
  fewer = run.evaluate(make_config(**{"evaluate.max_examples": 1}), workdir)
  assert fewer["retrieval"]["bm25"]["recall_at_4"] == 100.0
  assert {row["examples"] for row in table_rows(fewer).values()} == {1}
  assert (workdir / "evaluations" / "test" / "results.json").exists()


def test_a_moved_workdir_is_continued(finished, results, make_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  moved = tmp_path / "moved"
  shutil.copytree(finished, moved)
  (moved / "results.json").unlink()
  after = run.train(make_config(), moved)
  assert figures(after) == figures(results)
  assert "made in" not in caplog.text


def test_a_base_of_the_re_ranker_in_another_folder_is_the_same(
  finished, make_config, bi_encoder, tmp_path, caplog
):
  caplog.set_level(logging.INFO)
  workdir, base = shutil.copytree(finished, tmp_path / "run"), tmp_path / "base"
  shutil.copytree(bi_encoder, base)
  changes = {"reader.re_ranker.base": str(base), "reader.encoder": str(base)}
  (workdir / "results.json").unlink()
  run.train(make_config(**changes, stop_after="re_rank"), workdir)
  assert "re_ranker: unchanged" in caplog.text and "made in" not in caplog.text
  weights = base / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
  run.train(make_config(**changes, stop_after="re_ranker"), workdir)
  assert "re_ranker: made in" in caplog.text


def test_ranking_by_the_lm_depends_on_how_it_is_quantised(make_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  given = {"reader.ranking": "bm25", "reader.rankings": ("lm",), "stop_after": "re_rank"}
  contents = []
  for number, change in enumerate(({}, {"model.quantize": "int8"}, {"model.dtype": "bfloat16"})):
    workdir = tmp_path / str(number)
    if number:  # into a workdir of its own, as a config of another model must be
      shutil.copytree(tmp_path / str(number - 1) / "reader", workdir / "reader")
    caplog.clear()
    run.train(make_config(**given, **change), workdir)
    assert ("retrieved_test.jsonl: unchanged" in caplog.text) == bool(number)
    assert "lm_ranked_test.jsonl: made in" in caplog.text
    contents.append((workdir / "reader" / "lm_ranked_test.jsonl").read_bytes())
    caplog.clear()
    run.train(make_config(**given, **change), workdir)
    assert "lm_ranked_test.jsonl: unchanged" in caplog.text
  assert len(set(contents)) == 3, "the likelihoods are others"


MADE_BY = {  # step -> what there is after it and was not before
  "retrieve": {"retrieved_train.jsonl", "retrieved_validation.jsonl", "retrieved_test.jsonl"},
  "re_ranker": {"re_ranker"},
  "re_rank": {
    "re_ranked_validation.jsonl",
    "re_ranked_test.jsonl",
    "blended_test.jsonl",
    "blend_weights.json",
  },
  "pack": {
    "re_ranked_train.jsonl",
    "blended_train.jsonl",
    "blended_validation.jsonl",
    *(f"packed_{one}_110_{split}.jsonl" for one in ("none", "blended") for split in SPLITS),
    *(f"packed_{one}_110_test.jsonl" for one in ("bm25", "re_ranked", "gold")),
  },
}


def test_each_step_ends_a_run_that_is_to_stop_after_it(make_config, finished, tmp_path, capsys):
  there: set[str] = set()
  for step, names in MADE_BY.items():
    done = run.train(make_config(stop_after=step), tmp_path)
    there = there | names
    assert set(artifact_digests(tmp_path / "reader")) == there
    assert set(done) == {"stop_after", "files", "retrieval"} and set(done["files"]) == there
    assert f"Stopped after {step}" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "adapters").exists()
  assert artifact_digests(tmp_path / "reader") == artifact_digests(finished / "reader")


def test_training_and_test_contexts_are_packed_alike(make_config, tmp_path):
  config = make_config(**{"stop_after": "retrieve", "reader.ranking": "bm25"})
  done = run.train(config, tmp_path)
  assert "metrics" not in done, "main says where the adapter is of a whole run alone"
  assert set(done["files"]) == {f"retrieved_{split}.jsonl" for split in SPLITS}
  assert set(done["retrieval"]) == {"bm25", "dense", "fused"}
  assert done["retrieval"]["bm25"]["recall_at_4"] == 100.0
  config = make_config(
    **{"stop_after": "pack", "reader.ranking": "bm25", "reader.rankings": ("bm25", "none")}
  )
  done = run.train(config, tmp_path)
  folder = tmp_path / "reader"
  for split, count in (("train", 2), ("validation", 2), ("test", 2)):
    packed = rows(folder / f"packed_bm25_110_{split}.jsonl")
    found = rows(folder / f"retrieved_{split}.jsonl")
    assert len(packed) == count
    for row, of in zip(packed, found, strict=False):
      ids = [one["id"] for one in row["passages"]]
      assert ids == of["rankings"]["bm25"][: len(ids)] and ids and row["id"] == of["id"]
      assert row["input"].endswith(f"Question: {of['question']}\nAnswer:")
      assert row["target"] == of["answers"][0]
  assert rows(folder / "packed_none_110_test.jsonl")[0]["passages"] == []
  assert not (folder / "re_ranker").exists()


def test_questions_of_several_files_keep_their_data_sets(make_config, files, tmp_path):
  more = shutil.copy(files["data.train"], tmp_path / "more.jsonl")
  both = f"{files['data.train']},{more}"
  run.train(make_config(**{"stop_after": "re_ranker", "data.train": both}), tmp_path / "run")
  found = rows(tmp_path / "run" / "reader" / "retrieved_train.jsonl")
  assert [row["dataset"] for row in found] == ["train"] * 5 + ["more"] * 5


def test_the_first_training_questions_alone_are_retrieved(make_config, tmp_path):
  changes = {"stop_after": "retrieve", "reader.retrievers": ("bm25",)}
  changes |= {"reader.rankings": ("bm25",), "reader.ranking": "bm25"}
  found = []
  for most in (0, 3):
    folder = tmp_path / str(most)
    run.train(make_config(**changes, **{"reader.max_train_questions": most}), folder)
    found.append([row["id"] for row in rows(folder / "reader" / "retrieved_train.jsonl")])
  assert len(found[0]) == 5 and found[1] == found[0][:3]


def test_fusion_by_a_weighted_sum_of_scores(make_config, tmp_path):
  weighted = {"stop_after": "retrieve", "reader.fusion": "weighted_sum"}
  for weights, first in (((1.0, 0.0), "bm25"), ((0.0, 1.0), "dense")):
    run.train(make_config(**weighted, **{"reader.weights": weights}), tmp_path)
    for row in rows(tmp_path / "reader" / "retrieved_train.jsonl"):
      fused = [(one["id"], one["score"]) for one in row["ctxs"]]
      counted = [id for id, score in fused if score > 0]
      assert counted and counted == row["rankings"][first][: len(counted)]


def test_a_method_with_an_encoder_reads(make_config, bi_encoder, tmp_path):
  given = {"reader.ranking": "bm25", "reader.rankings": ("bm25",), "model.encoder": str(bi_encoder)}
  given |= {"stages.reader.method": "id_pt"} | READER_ALONE
  results = run.train(make_config(**given), tmp_path)
  assert results["method"] == "id_pt" and results["frozen_unchanged"]
  table = figures(results)
  assert table["reader"] == table["bm25 110"]


@pytest.fixture
def other_base(bi_encoder, tmp_path):
  """The tiny encoder with another file that the re-ranker's base is named by."""
  folder = shutil.copytree(bi_encoder, tmp_path / "base")
  (folder / "vocab.txt").write_text("other")
  return folder


def test_a_finished_run_is_not_that_of_another_corpus_encoder_or_base(
  finished, make_config, files, other_base, tmp_path
):
  """Nor of those that were rewritten in place; equal ones elsewhere are the same."""
  lines = files["reader.corpus"].read_text().splitlines()
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text("\n".join([*lines[:-1], lines[-1].replace("land", "city")]) + "\n")
  encoder = other_encoder(make_config, tmp_path)
  for key, value in (
    ("reader.corpus", corpus),
    ("reader.encoder", encoder),
    ("reader.question_encoder", encoder),
    ("reader.re_ranker.base", other_base),
  ):
    with pytest.raises(UserError, match=rf"another config \(different: .*{key}"):
      run.train(make_config(**{key: str(value)}), finished)
  same = tmp_path / "same.jsonl"
  same.write_text("\n".join(lines) + "\n")
  again = make_config(**{"reader.corpus": str(same)})
  assert run.train(again, finished)["inputs"]["reader.corpus"]


def other_encoder(make_config, tmp_path):
  """The sentence encoder of the config with other weights."""
  folder = shutil.copytree(make_config().reader.encoder, tmp_path / "encoder")
  weights = load_file(folder / "model.safetensors")
  save_file({name: array + 1 for name, array in weights.items()}, folder / "model.safetensors")
  return folder


def test_another_table_of_a_finished_run_is_said(finished, make_config, capsys):
  changes = {"reader.recall_at": (1, 2), "reader.rankings": ("none",), "reader.budgets": (100,)}
  run.train(make_config(**changes), finished)
  said = capsys.readouterr().out
  assert "scored with another reader.rankings, reader.budgets, reader.recall_at" in said
