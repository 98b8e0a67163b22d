"""Retrieval: what each retriever finds for a question, and their fusion, as FiD rows.

A row's `ctxs` are the fused passages, best first; next to them `rankings` has the ids that each
retriever found, in its own order, `scores` what it gave them, and `positive_ids` those of the
passages known to answer.
"""

import collections
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from frozen_jax.config.dependencies import key
from frozen_jax.models.frozen_encoder import FrozenEncoder, load_encoder
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.retrieve_read.questions import Question
from frozen_jax.retrieval.bm25 import build_bm25, open_bm25
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.retrieval.dense import DenseRetriever
from frozen_jax.retrieval.dense_index import Embed, build_dense
from frozen_jax.retrieval.hybrid import Fuse, reciprocal_ranks, weighted_sum
from frozen_jax.retrieval.retriever import Retriever
from frozen_jax.retrieval.settings import RetrievalSettings
from frozen_jax.retrieval.words import VERSION
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.sharding.rules import row_groups

SEARCH_BLOCK = 256  # questions searched together
_CACHED_PASSAGES = 2**16  # passages that are not parsed again
_BUILD_SECONDS = 24 * 3600  # in which an index is built at the latest
_FORMAT = 4  # of a row: raised where it holds something else than before
_LOG = logging.getLogger(__name__)


class Retrieval:
  """The retrievers of `config.reader.retrievers` over one corpus; indexes are built when needed.

  `dependencies` says what the rows depend on, for artifacts.
  """

  def __init__(self, settings: RetrievalSettings, corpus: Corpus, artifacts: Artifacts, mesh: Mesh):
    self._settings, self._fuse = settings, fusion(settings)
    self.corpus, self._mesh = corpus, mesh
    self._passage = functools.lru_cache(_CACHED_PASSAGES)(corpus.__getitem__)
    self.depth = min(settings.depth, len(corpus))
    self._folder = artifacts.path("indexes")
    self._encoders: tuple[FrozenEncoder, FrozenEncoder] | None = None
    if "dense" in settings.retrievers:
      name, dtype = settings.question_encoder, settings.encoder_dtype
      passages = load_encoder(settings.encoder, dtype, mesh)
      self._encoders = passages, load_encoder(name, dtype, mesh) if name else passages
    self._retrievers: dict[str, Retriever] = {}
    self.dependencies = {
      "format": _FORMAT,
      "corpus": corpus.fingerprint,
      "encoder": self._encoder_fingerprint(),
      "retrieval": settings,
    }

  def rows(self, questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    """A FiD row of each question; says at the end for how many a retriever found nothing."""
    without: collections.Counter[str] = collections.Counter()
    for start in range(0, len(questions), SEARCH_BLOCK):
      block = questions[start : start + SEARCH_BLOCK]
      texts = [one.question for one in block]
      results = {
        name: self._open(name).search(texts, self.depth) for name in self._settings.retrievers
      }
      for name, (_, scores) in results.items():
        without[name] += int((scores == 0).all(axis=1).sum())
      fused = self._fuse(list(results.values()), self.depth)
      for row, one in enumerate(block):
        passages = [self._passage(int(position))._asdict() for position in fused.ids[row]]
        yield {
          "id": one.id,
          "dataset": one.dataset,
          "question": one.question,
          "answers": list(one.answers),
          "positive_ids": self._ids(one.positives),
          "ctxs": [
            passage | {"score": float(score)}
            for passage, score in zip(passages, fused.scores[row], strict=True)
          ],
          "rankings": {name: self._ids(ids[row]) for name, (ids, _) in results.items()},
          "scores": {
            name: scores[row].astype(float).tolist() for name, (_, scores) in results.items()
          },
        }

    for name, count in without.items():
      if count:
        _LOG.warning(
          "%s found nothing for %d of %d questions, which take no rank from it",
          *(name, count, len(questions)),
        )

  def _ids(self, positions: Any) -> list[str]:
    return [self._passage(int(position)).id for position in positions]

  def _open(self, name: str) -> Retriever:
    if name not in self._retrievers:
      self._retrievers[name] = self._bm25() if name == "bm25" else self._dense()
    return self._retrievers[name]

  def _bm25(self) -> Retriever:
    folder = self._folder / f"bm25-{key({'corpus': self.corpus.fingerprint, 'words': VERSION})}"
    # One host builds it for all that see the same folder.
    if is_first_host() and not folder.exists():
      build_bm25(folder, self.corpus)
    barrier(f"{folder.name} built", _BUILD_SECONDS)
    open_or_build = open_bm25 if folder.exists() else build_bm25
    return open_or_build(folder, self.corpus)

  def _dense(self) -> Retriever:
    assert self._encoders is not None  # as its name is among the retrievers
    settings = self._settings
    of_passages, of_questions = self._encoders
    length = settings.encoder_length
    # Empty settings: what the folders of the encoders say.
    prompt = settings.passage_prompt or of_passages.texts.document_prompt
    query_prompt = settings.query_prompt or of_questions.texts.query_prompt
    passages = embedding(of_passages, length, self._mesh, prompt)
    questions = embedding(of_questions, length, self._mesh, query_prompt)
    fingerprint = self._encoder_fingerprint()
    name = {
      "corpus": self.corpus.fingerprint,
      "encoder": fingerprint,
      "length": min(length, of_passages.max_length),
      "dtype": settings.encoder_dtype,
      "separator": settings.separator,
    } | ({"prompt": prompt} if prompt else {})
    folder = self._folder / f"dense-{key(name)}"
    index = build_dense(folder, self.corpus, passages, fingerprint, separator=settings.separator)
    return DenseRetriever(index, questions, self._mesh)

  def _encoder_fingerprint(self) -> str:
    """Of the passages' encoder, and of the questions' where that is another one."""
    return "+".join(dict.fromkeys(one.texts_fingerprint for one in self._encoders or ()))


def fusion(settings: RetrievalSettings) -> Fuse:
  """How the results of several retrievers become one ranking."""
  if settings.fusion == "reciprocal_ranks":
    return reciprocal_ranks
  return functools.partial(weighted_sum, weights=settings.weights)


def embedding(encoder: FrozenEncoder, length: int, mesh: Mesh, prompt: str | None = None) -> Embed:
  """Texts -> the pooled vectors of an encoder; rows are split over the mesh if it divides them.

  length: tokens to which texts are truncated, if the encoder's own limit is not lower. prompt: put
  before each text; None: the encoder's own of documents.
  """
  groups = row_groups(mesh)

  def put(batch: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    return shard_batch(batch, mesh) if len(batch["tokens"]) % groups == 0 else batch

  prompt = encoder.texts.document_prompt if prompt is None else prompt
  return encoder.text_embedder(prompt, length, put)
