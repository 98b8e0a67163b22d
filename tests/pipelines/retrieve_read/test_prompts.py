"""What is put before questions and passages for the dense retriever, and what depends on it."""

import json
import shutil

import numpy as np
import pytest

from frozen_jax.config.dependencies import changed, record
from frozen_jax.models.frozen_encoder import load_encoder
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.retrieve_read.retrieve import Retrieval
from frozen_jax.retrieval.corpus import open_corpus
from frozen_jax.retrieval.settings import RetrievalSettings
from frozen_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.program

QUESTION = "What is the capital of Peru?"


@pytest.fixture
def retrieval(bi_encoder, files, tmp_path):
  """`retrieval(**settings)`, all in one folder; `retrieval.folder` is that of the encoder."""
  folder = tmp_path / "encoder"
  shutil.copytree(bi_encoder, folder)
  corpus = open_corpus(files["reader.corpus"], progress=False)

  def make(**settings):
    settings = {"retrievers": ("dense",), "encoder_dtype": "float32", "depth": 2} | settings
    settings = RetrievalSettings(encoder=str(folder), **settings)
    return Retrieval(settings, corpus, Artifacts(tmp_path / "artifacts"), make_mesh())

  make.folder, make.corpus = folder, corpus
  return make


def vectors(made):
  """Those of the passages and of a question."""
  dense = made._open("dense")
  return dense.index.folder, np.asarray(dense.index.rows(0, len(dense))), dense._embed([QUESTION])


def test_prompts_of_the_settings_and_of_the_folder(retrieval):
  texts = [passage.joined(" ") for passage in retrieval.corpus]
  encoder = load_encoder(str(retrieval.folder))
  encode = lambda prompt, given: encoder.text_embedder(prompt)(given)
  close = lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5)
  plain = retrieval()
  folder, passages, question = vectors(plain)
  close(passages, encode("", texts))
  close(question, encode("", [QUESTION]))

  given = retrieval(query_prompt="query: ", passage_prompt="passage: ")
  other, passages, question = vectors(given)
  assert other != folder
  close(passages, encode("passage: ", texts))
  close(question, encode("query: ", [QUESTION]))
  assert changed(given.dependencies, record(plain.dependencies)) == [
    "retrieval.query_prompt",
    "retrieval.passage_prompt",
  ]
  asked, _, question = vectors(retrieval(query_prompt="query: "))
  assert asked == folder  # of the passages, which are embedded as before
  close(question, encode("query: ", [QUESTION]))

  prompts = {"prompts": {"query": "Q ", "document": "D "}}
  (retrieval.folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
  own = retrieval()
  third, passages, question = vectors(own)
  assert third not in (folder, other)
  close(passages, encode("D ", texts))
  close(question, encode("Q ", [QUESTION]))
  assert changed(own.dependencies, record(plain.dependencies)) == ["encoder"]
  _, passages, question = vectors(retrieval(query_prompt="query: ", passage_prompt="passage: "))
  close(passages, encode("passage: ", texts))
  close(question, encode("query: ", [QUESTION]))

  (retrieval.folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
  short = retrieval()
  fourth, passages, _ = vectors(short)
  assert fourth not in (folder, other, third)
  close(passages, load_encoder(str(retrieval.folder)).encode_document(texts))
  assert changed(short.dependencies, record(own.dependencies)) == ["encoder"]
