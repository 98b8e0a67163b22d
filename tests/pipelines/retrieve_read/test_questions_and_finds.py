"""Questions with passages' ids of any form; a question without a find is counted and said."""

import json
import types

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.retrieve_read.questions import reader_questions
from frozen_jax.pipelines.retrieve_read.retrieve import Retrieval
from frozen_jax.pipelines.retrieve_read.table import recall, recall_lines
from frozen_jax.retrieval.corpus import open_corpus
from frozen_jax.retrieval.settings import RetrievalSettings
from frozen_jax.sharding.mesh import make_mesh


@pytest.fixture
def corpus(tmp_path):
  rows = [{"id": number, "text": f"the city of land {number}"} for number in range(4)]
  (tmp_path / "corpus.json").write_text(json.dumps(rows))
  return open_corpus(tmp_path / "corpus.json", progress=False)


def asked(tmp_path, corpus, **row):
  path = tmp_path / "questions.jsonl"
  path.write_text(json.dumps({"question": "which city?", "answers": ["a"]} | row))
  return reader_questions(str(path), (), corpus)[0]


@pytest.mark.parametrize(
  "ids, positions",
  [([3], (3,)), (["3", 1], (3, 1)), (3, (3,)), ("2", (2,)), ([], ()), (None, ())],
)
def test_ids_of_passages(tmp_path, corpus, ids, positions):
  assert asked(tmp_path, corpus, positive_ids=ids, id=7).positives == positions
  assert asked(tmp_path, corpus, id=7).id == "7"


@pytest.mark.parametrize(
  "ids, message",
  [
    ([True], "positive_ids must be texts or whole numbers"),
    ([3.5], "positive_ids must be texts or whole numbers"),
    ({"id": 3}, "positive_ids must be texts or whole numbers"),
    (["wiki:3"], "no passage of the id 'wiki:3'"),
    ([9], "no passage of the id '9'"),
  ],
)
def test_ids_that_name_no_passage(tmp_path, corpus, ids, message):
  with pytest.raises(UserError, match=f"question q: .*{message}"):
    asked(tmp_path, corpus, positive_ids=ids, id="q")


def test_questions_without_a_find_are_counted_and_said(tmp_path, corpus, caplog):
  settings = RetrievalSettings(retrievers=("bm25",), depth=3)
  retrieval = Retrieval(settings, corpus, Artifacts(tmp_path / "reader"), make_mesh())
  questions = [
    asked(tmp_path, corpus, id=str(n), question=text)
    for n, text in enumerate(("which city is it?", "qui est là?", "and of land 3?"))
  ]
  rows = list(retrieval.rows(questions))
  assert [any(row["scores"]["bm25"]) for row in rows] == [True, False, True]
  assert "bm25 found nothing for 1 of 3 questions" in caplog.text
  caplog.clear()
  assert len(list(retrieval.rows(questions[:1]))) == 1 and not caplog.text

  tokenizer = lambda text, **_: {"input_ids": text.split()}
  pipeline = types.SimpleNamespace(
    corpus=corpus, has=lambda name: name in ("bm25", "fused"), rows=lambda name: iter(rows)
  )
  reader = types.SimpleNamespace(retrievers=("bm25",), recall_at=(1,))
  figures = recall(pipeline, reader, types.SimpleNamespace(tokenizer=tokenizer))
  assert figures["bm25"]["nothing_found"] == 1 and "nothing_found" not in figures["fused"]
  assert any("bm25 found nothing for 1 test question" in line for line in recall_lines(figures))
