"""Fixtures of the tests of retrieval: a temporary cache directory, and small corpora."""

import pytest

from frozen_jax.retrieval.corpus import Passage, open_corpus, write_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """An empty cache directory."""
  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(folder))
  return folder


@pytest.fixture
def make_corpus(tmp_path):
  """A function: texts -> their corpus, with the ids p0, p1, ..."""

  def make(texts, name="corpus.jsonl"):
    path = tmp_path / name
    write_corpus(path, [Passage(f"p{number}", "", text) for number, text in enumerate(texts)])
    return open_corpus(path, progress=False)

  return make
