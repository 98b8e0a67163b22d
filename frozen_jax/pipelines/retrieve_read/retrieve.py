"""Retrieval: what each retriever finds for a question, and their fusion, as FiD rows.

A row's `ctxs` are the fused passages, best first; next to them `rankings` has the ids that each
retriever found, in its own order, `scores` what it gave them, and `positive_ids` those of the
passages known to answer.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from frozen_jax.config.dependencies import key
from frozen_jax.core.errors import UserError
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
from frozen_jax.retrieval.text_embedder import text_embedder
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.rules import row_groups

BLOCK = 256  # questions searched together
_CACHED_PASSAGES = 2**16  # passages that are not parsed again
_FORMAT = 3  # of a row: raised where it holds something else than before


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
    """A FiD row of each question."""
    for start in range(0, len(questions), BLOCK):
      block = questions[start : start + BLOCK]
      texts = [one.question for one in block]
      results = {
        name: self._open(name).search(texts, self.depth) for name in self._settings.retrievers
      }
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

  def _ids(self, positions: Any) -> list[str]:
    return [self._passage(int(position)).id for position in positions]

  def _open(self, name: str) -> Retriever:
    if name not in self._retrievers:
      self._retrievers[name] = self._bm25() if name == "bm25" else self._dense()
    return self._retrievers[name]

  def _bm25(self) -> Retriever:
    folder = self._folder / f"bm25-{key({'corpus': self.corpus.fingerprint})}"
    open_or_build = open_bm25 if folder.exists() else build_bm25
    return open_or_build(folder, self.corpus)

  def _dense(self) -> Retriever:
    assert self._encoders is not None  # as its name is among the retrievers
    settings = self._settings
    lengths = [min(settings.encoder_length, one.config.max_tokens) for one in self._encoders]
    passages, questions = (
      embedding(one, length, self._mesh)
      for one, length in zip(self._encoders, lengths, strict=True)
    )
    fingerprint = self._encoder_fingerprint()
    name = {
      "corpus": self.corpus.fingerprint,
      "encoder": fingerprint,
      "length": lengths[0],
      "dtype": settings.encoder_dtype,
      "separator": settings.separator,
    }
    folder = self._folder / f"dense-{key(name)}"
    index = build_dense(folder, self.corpus, passages, fingerprint, separator=settings.separator)
    return DenseRetriever(index, questions, self._mesh)

  def _encoder_fingerprint(self) -> str:
    """Of the passages' encoder, and of the questions' where that is another one."""
    return "+".join(dict.fromkeys(one.fingerprint for one in self._encoders or ()))


def fusion(settings: RetrievalSettings) -> Fuse:
  """How the results of several retrievers become one ranking."""
  if settings.fusion == "reciprocal_ranks":
    return reciprocal_ranks
  return functools.partial(weighted_sum, weights=settings.weights)


def embedding(encoder: FrozenEncoder, length: int, mesh: Mesh) -> Embed:
  """Texts -> the pooled vectors of an encoder; rows are split over the mesh if it divides them."""
  groups = row_groups(mesh)

  def put(batch: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    return shard_batch(batch, mesh) if len(batch["tokens"]) % groups == 0 else batch

  def encode(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return encoder.pool(encoder.hidden(tokens, mask), mask)

  if encoder.tokenizer is None:
    raise UserError(f"{encoder.name} has no tokenizer; add tokenizer.json to its folder")
  return text_embedder(encoder.tokenizer, encode, length, put)
