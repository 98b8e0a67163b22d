"""The interface of all retrievers, and the one rule by which search results are ranked."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from frozen_jax.core.errors import UserError


class SearchResult(NamedTuple):
  """The k best passages of each question, best first; ties go to the lower position.

  ids: int64 [Q, k], positions in the corpus. scores: float32 [Q, k], in the retriever's own unit;
  a passage of score 0 has nothing of the question: it fills the result up, and was not found.
  """

  ids: np.ndarray
  scores: np.ndarray


@runtime_checkable
class Retriever(Protocol):
  """Finds passages of one corpus."""

  @property
  def corpus_fingerprint(self) -> str:
    """The fingerprint of the corpus to whose positions the results refer."""
    ...

  def __len__(self) -> int:
    """N, the number of passages in the corpus."""
    ...

  def search(self, queries: Sequence[str], k: int) -> SearchResult:
    """The k best passages of each question.

    Raises UserError where k is not from 1 to N.
    """
    ...


def check_k(k: int, size: int) -> None:
  """Raises UserError where k passages cannot be retrieved from a corpus of `size`."""
  if not 1 <= k <= size:
    raise UserError(f"{k} passages were asked for, of a corpus of {size}; ask for 1 to {size}")


def empty_result(k: int) -> SearchResult:
  """The result of a search without questions, [0, k]."""
  return SearchResult(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))


def concatenate_results(results: Sequence[SearchResult]) -> SearchResult:
  """The results of consecutive groups of questions as one; at least one group."""
  return SearchResult(*(np.concatenate(arrays) for arrays in zip(*results, strict=True)))


def top_k(scores: np.ndarray, k: int, ids: np.ndarray | None = None) -> SearchResult:
  """The k highest scores of each row; ties go to the lower id.

  Args:
    scores: float [Q, N].
    ids: int [Q, N], the passage of each column (None: the column's index); N is at least k.
  """
  width = scores.shape[1]
  if ids is None and k < width:
    kth_highest = np.partition(scores, width - k, axis=1)[:, width - k, None]
    return _top_k_by_row(scores, k, kth_highest)
  ids = np.broadcast_to(np.arange(width), scores.shape) if ids is None else ids
  columns = np.lexsort((ids, -scores), axis=1)[:, :k]
  top_ids, top_scores = (np.take_along_axis(array, columns, 1) for array in (ids, scores))
  return SearchResult(top_ids.astype(np.int64), top_scores.astype(np.float32))


def _top_k_by_row(scores: np.ndarray, k: int, kth_highest: np.ndarray) -> SearchResult:
  """Row by row, sorting only the scores that are not below the k-th highest."""
  ids = np.empty((len(scores), k), np.int64)
  for row, (values, bound) in enumerate(zip(scores, kth_highest, strict=True)):
    columns = np.flatnonzero(values >= bound)  # ascending; more than k where scores tie
    ids[row] = columns[np.argsort(-values[columns], kind="stable")[:k]]
  return SearchResult(ids, np.take_along_axis(scores, ids, 1).astype(np.float32))
