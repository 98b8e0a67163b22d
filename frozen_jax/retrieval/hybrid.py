"""Several retrievers of one corpus as one: reciprocal-rank fusion, or a weighted sum of scores."""

from collections.abc import Callable, Sequence

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.retriever import (
  Retriever,
  SearchResult,
  check_k,
  concatenate_results,
  empty_result,
  top_k,
)

Fuse = Callable[[Sequence[SearchResult], int], SearchResult]


class HybridRetriever:
  """A `Retriever` that queries several retrievers and fuses their results."""

  def __init__(self, retrievers: Sequence[Retriever], fuse: Fuse, depth: int = 100):
    """Args:
      fuse: the results of all retrievers, k -> the k best passages.
      depth: how many passages each retriever returns; at least k.

    Raises:
      UserError: the retrievers are not of one corpus.
    """
    if len({retriever.corpus_fingerprint for retriever in retrievers}) != 1:
      raise UserError("the retrievers to be fused are of different corpora; build all of one")
    self._retrievers, self._fuse, self._depth = retrievers, fuse, depth

  @property
  def corpus_fingerprint(self) -> str:
    return self._retrievers[0].corpus_fingerprint

  def __len__(self) -> int:
    return len(self._retrievers[0])

  def search(self, queries: Sequence[str], k: int) -> SearchResult:
    """The k best passages of each question; UserError where k is not from 1 to N."""
    check_k(k, len(self))
    depth = min(max(k, self._depth), len(self))
    return self._fuse([retriever.search(queries, depth) for retriever in self._retrievers], k)


def reciprocal_ranks(results: Sequence[SearchResult], k: int, constant: int = 60) -> SearchResult:
  """Fuses by the sum of 1 / (constant + rank), ranks from 1 (Cormack, Clarke, Buettcher 2009).

  A passage that a retriever did not find (score 0) has no rank from it.
  """
  contributions = [
    np.where(scores != 0, 1.0 / (constant + 1 + np.arange(ids.shape[1])), 0.0)
    for ids, scores in results
  ]
  return _top_k_of_sums([ids for ids, _ in results], contributions, k)


def weighted_sum(results: Sequence[SearchResult], k: int, weights: Sequence[float]) -> SearchResult:
  """Fuses by the weighted sum of scores, each retriever's min-max normalised for each question.

  The worst passage that a retriever found contributes 0, as does one that it did not find (score
  0); where all its scores are equal, each counts 1.
  """
  contributions = []
  for (_, scores), weight in zip(results, weights, strict=True):
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    spread = np.where(high > low, high.astype(np.float64) - low, 1.0)
    share = np.where(high > low, (scores - low) / spread, 1.0)
    contributions.append(weight * np.where(scores != 0, share, 0.0))
  return _top_k_of_sums([ids for ids, _ in results], contributions, k)


def _top_k_of_sums(
  ids: Sequence[np.ndarray], contributions: Sequence[np.ndarray], k: int
) -> SearchResult:
  """The k passages with the highest sums of contributions; each row has k different passages."""
  rows = []
  for row in range(len(ids[0])):
    row_ids = np.concatenate([array[row] for array in ids])
    unique_ids, columns = np.unique(row_ids, return_inverse=True)
    sums = np.bincount(columns, np.concatenate([array[row] for array in contributions]))
    rows.append(top_k(sums.astype(np.float32)[None], k, unique_ids[None]))
  return concatenate_results(rows) if rows else empty_result(k)
