"""The first stage: what each retriever finds for a question, and their fusion, as FiD rows.

A row's `ctxs` are the fused passages, best first; beside them `orders` has the ids that each
retriever found, in its own order, `scores` what it gave them, and `positive_ids` those of the
passages known to answer.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.bm25 import build_bm25, open_bm25
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.retrieval.dense import Dense
from frozen_jax.retrieval.dense_index import Embed, build_dense
from frozen_jax.retrieval.hybrid import Fuse, reciprocal_ranks, weighted_sum
from frozen_jax.retrieval.retriever import Retriever
from frozen_jax.retrieval.text_vectors import text_vectors
from frozen_jax.run.frozen_encoder import FrozenEncoder, load_encoder
from frozen_jax.run.reader.questions import Asked
from frozen_jax.run.steps import Steps, key
from frozen_jax.sharding.place import make_place
from frozen_jax.sharding.rules import row_groups

RETRIEVERS = ("bm25", "dense")
FUSIONS = ("reciprocal_ranks", "weighted_sum")
SEARCHED_AT_ONCE = 256  # questions
_REMEMBERED = 2**16  # passages that are not parsed again
_FORM = 2  # of a row: counted on where it holds something else than before


class Retrieval:
  """The retrievers of `config.reader.retrievers` over one corpus; indexes are built when asked for.

  `fingerprint` says what they are, for the notes of steps.
  """

  def __init__(self, options: Mapping[str, Any], corpus: Corpus, steps: Steps, mesh: Mesh):
    """`options`: the config's `reader`. Raises UserError for unknown retrievers or fusions."""
    self._names, self._options = list(options["retrievers"]), options
    odd = [name for name in self._names if name not in RETRIEVERS]
    if odd or not self._names:
      raise UserError(
        f"reader.retrievers names {', '.join(odd) or 'nothing'}; there are: {', '.join(RETRIEVERS)}"
      )
    self._fuse = fusion(options)
    self.corpus, self._mesh = corpus, mesh
    self._passage = functools.lru_cache(_REMEMBERED)(corpus.__getitem__)
    self.depth = min(options["depth"], len(corpus))
    if self.depth < 1:
      raise UserError(f"reader.depth is {options['depth']}; give at least 1")
    self._folder = steps.path("indexes")
    self._encoders: tuple[FrozenEncoder, FrozenEncoder] | None = None
    if "dense" in self._names:
      asked, dtype = options["question_encoder"], options["encoder_dtype"]
      passages = load_encoder(options["encoder"], dtype, mesh)
      self._encoders = passages, load_encoder(asked, dtype, mesh) if asked else passages
    self._retrievers: dict[str, Retriever] = {}
    self.fingerprint = {
      "form": _FORM,
      "corpus": corpus.fingerprint,
      "retrievers": self._names,
      "fusion": options["fusion"],
      "weights": list(options["weights"]) if options["fusion"] == "weighted_sum" else [],
      "depth": self.depth,
      "encoder": self._encoder_fingerprint(),
      "encoder_length": options["encoder_length"],
      "encoder_dtype": options["encoder_dtype"],
      "separator": options["separator"],
    }

  def rows(self, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """A FiD row of each question."""
    for start in range(0, len(asked), SEARCHED_AT_ONCE):
      block = asked[start : start + SEARCHED_AT_ONCE]
      texts = [one.question for one in block]
      found = {name: self._open(name).search(texts, self.depth) for name in self._names}
      fused = self._fuse(list(found.values()), self.depth)
      for row, one in enumerate(block):
        orders = {name: self._ids(ids[row]) for name, (ids, _) in found.items()}
        given = {name: scores[row].astype(float).tolist() for name, (_, scores) in found.items()}
        passages = [self._passage(int(at))._asdict() for at in fused.ids[row]]
        contexts = [
          passage | {"score": float(score)}
          for passage, score in zip(passages, fused.scores[row], strict=True)
        ]
        yield {
          "id": one.id,
          "dataset": one.dataset,
          "question": one.question,
          "answers": list(one.answers),
          "positive_ids": self._ids(one.positives),
          "ctxs": contexts,
          "orders": orders,
          "scores": given,
        }

  def _ids(self, positions: Any) -> list[str]:
    return [self._passage(int(at)).id for at in positions]

  def _open(self, name: str) -> Retriever:
    if name not in self._retrievers:
      self._retrievers[name] = self._bm25() if name == "bm25" else self._dense()
    return self._retrievers[name]

  def _bm25(self) -> Retriever:
    folder = self._folder / f"bm25-{key({'corpus': self.corpus.fingerprint})}"
    opened = open_bm25 if folder.exists() else build_bm25
    return opened(folder, self.corpus)

  def _dense(self) -> Retriever:
    assert self._encoders is not None  # as its name is among the retrievers
    separator = self._options["separator"]
    lengths = [min(self._options["encoder_length"], one.config.room) for one in self._encoders]
    passages, questions = (
      embedding(one, length, self._mesh)
      for one, length in zip(self._encoders, lengths, strict=True)
    )
    fingerprint = self._encoder_fingerprint()
    name = {"corpus": self.corpus.fingerprint, "encoder": fingerprint, "to": lengths[0]}
    name |= {"dtype": self._options["encoder_dtype"], "separator": separator}
    folder = self._folder / f"dense-{key(name)}"
    index = build_dense(folder, self.corpus, passages, fingerprint, separator=separator)
    return Dense(index, questions, self._mesh)

  def _encoder_fingerprint(self) -> str:
    """Of the passages' encoder, and of the questions' where that is another one."""
    return "+".join(dict.fromkeys(one.fingerprint for one in self._encoders or ()))


def fusion(options: Mapping[str, Any]) -> Fuse:
  """How several retrievers' finds become one order; `options`: the config's `reader`.

  Raises UserError for an unknown fusion, and for weights that are not one a retriever.
  """
  name, weights = options["fusion"], tuple(options["weights"])
  if name not in FUSIONS:
    raise UserError(f"reader.fusion is {name!r}; there are: {', '.join(FUSIONS)}")
  if name == "reciprocal_ranks":
    return reciprocal_ranks
  if len(weights) != len(options["retrievers"]) or min(weights) < 0 or not any(weights):
    raise UserError(
      f"reader.weights is {weights}; give one from 0 up to each of reader.retrievers, not all 0"
    )
  return functools.partial(weighted_sum, weights=weights)


def embedding(encoder: FrozenEncoder, length: int, mesh: Mesh) -> Embed:
  """Texts -> the pooled vectors of an encoder; rows are split over the mesh if it divides them."""
  place, groups = make_place(mesh), row_groups(mesh)

  def put(batch: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    return place(batch) if len(batch["tokens"]) % groups == 0 else batch

  def encode(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return encoder.pool(encoder.hidden(tokens, mask), mask)

  if encoder.tokenizer is None:
    raise UserError(f"{encoder.name} has no tokenizer; add tokenizer.json to its folder")
  return text_vectors(encoder.tokenizer, encode, length, put)
