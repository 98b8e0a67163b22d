"""Rows, questions, templates, corpora and retrieved passages that are read from a store."""

import json

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import user_path
from frozen_jax.data.sources import open_questions, open_source
from frozen_jax.retrieval.corpus import open_corpus
from frozen_jax.retrieval.fid_rows import read_rows
from tests import object_stores

TEMPLATES = """
dataset: capitals
templates:
  one: !Template {name: ask, jinja: "Capital of {{country}}? ||| {{city}}", id: a, reference: ""}
"""
ROWS = [{"country": "Peru", "city": "Lima"}, {"country": "Chile", "city": "Santiago"}]


@pytest.fixture(scope="module", params=object_stores.SCHEMES)
def folder(request):
  with object_stores.store(request.param) as running:
    yield user_path(f"{running.url}/files")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path))


def put(folder, name, *rows):
  text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
  (folder / name).write_bytes(text.encode())
  return str(folder / name)


def test_rows_of_several_files_and_templates(folder):
  put(folder, "templates/capitals.yaml", TEMPLATES)
  first = put(folder, "a/rows.jsonl", *({"dataset": "capitals"} | row for row in ROWS))
  second = put(folder, "b/rows.jsonl", {"dataset": "other", "input": "x", "target": "y"})
  source = open_source(f"{first},{second}", templates=str(folder / "templates"))
  assert [one["input"] for one in source] == ["Capital of Peru?", "Capital of Chile?", "x"]
  twice = open_source(f"{put(folder, 'a/q.jsonl', QUESTION)},{put(folder, 'b/q.jsonl', QUESTION)}")
  assert twice.datasets == ("a/q", "b/q")


QUESTION = {"question": "Where?", "answers": ["here"]}


def test_a_malformed_row_is_named_by_its_place_on_the_store(folder):
  broken = put(folder, "broken.jsonl", QUESTION, "{")
  with pytest.raises(UserError, match=f"{broken}, line 2: malformed JSON"):
    open_source(broken)


def test_questions(folder):
  path = put(folder, "questions.txt", "Where?", "Who?")
  assert [one["question"] for one in open_questions(path)] == ["Where?", "Who?"]


def test_a_corpus_and_retrieved_passages(folder):
  passages = [{"id": str(n), "title": "t", "text": f"text {n}"} for n in range(3)]
  corpus = open_corpus(put(folder, "corpus.jsonl", *passages), progress=False)
  assert len(corpus) == 3 and corpus[2].text == "text 2"
  row = QUESTION | {"ctxs": [{"title": "t", "text": "x"}]}
  (found,) = read_rows(put(folder, "rows.fid.jsonl", row))
  assert found["question"] == "Where?"
  with pytest.raises(UserError, match="there is no file .*/none.jsonl"):
    open_corpus(str(folder / "none.jsonl"))
