"""Fusion on cases that can be counted by hand, and on real questions where the data is there."""

import functools

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.hybrid import HybridRetriever, reciprocal_ranks, weighted_sum
from frozen_jax.retrieval.retriever import SearchResult

FIRST = SearchResult(np.array([[4, 2, 7]]), np.float32([[9, 5, 1]]))
SECOND = SearchResult(np.array([[2, 5, 4]]), np.float32([[0.9, 0.8, 0.1]]))


class Fixed:
  """A retriever that always finds the same."""

  def __init__(self, result, corpus_fingerprint="c", size=9):
    self.result, self.corpus_fingerprint, self.size, self.asked = (
      result,
      corpus_fingerprint,
      size,
      [],
    )

  def __len__(self):
    return self.size

  def search(self, queries, k):
    self.asked.append(k)
    return SearchResult(*(part[:, :k] for part in self.result))


def test_reciprocal_ranks():
  found = reciprocal_ranks([FIRST, SECOND], 4)
  assert found.ids.tolist() == [[2, 4, 5, 7]]
  expected = [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63]
  np.testing.assert_allclose(found.scores[0], expected, rtol=1e-6)


def test_weighted_sum():
  found = weighted_sum([FIRST, SECOND], 3, (0.25, 0.75))
  expected = {4: 0.25, 2: 0.25 * 0.5 + 0.75, 5: 0.75 * 0.875}
  assert found.ids.tolist() == [[2, 5, 4]]
  np.testing.assert_allclose(found.scores[0], [expected[index] for index in (2, 5, 4)], rtol=1e-6)


def test_equal_sums_go_by_position_and_equal_scores_count_alike():
  apart = [
    SearchResult(np.array([[6]]), np.float32([[3]])),
    SearchResult(np.array([[1]]), np.float32([[8]])),
  ]
  for found in (reciprocal_ranks(apart, 2), weighted_sum(apart, 2, (1, 1))):
    assert found.ids.tolist() == [[1, 6]] and found.scores[0, 0] == found.scores[0, 1]


def test_what_is_not_found_has_no_rank():
  """Passages of score 0 fill a result up, in the order of their positions."""
  nothing = SearchResult(np.array([[0, 1, 2]]), np.float32([[0, 0, 0]]))
  partly = SearchResult(np.array([[5, 0, 1]]), np.float32([[2, 0, 0]]))
  for fuse in (reciprocal_ranks, functools.partial(weighted_sum, weights=(1, 1))):
    assert fuse([nothing, SECOND], 3).ids.tolist()[0][:2] == [2, 5]
    assert fuse([partly, SECOND], 4).ids.tolist()[0][0] == 5
    found = fuse([nothing, nothing], 3)
    assert (found.ids.tolist(), found.scores.tolist()) == ([[0, 1, 2]], [[0, 0, 0]])


def test_a_hybrid_asks_for_more_than_it_gives():
  first, second = Fixed(FIRST), Fixed(SECOND)
  hybrid = HybridRetriever([first, second], reciprocal_ranks, depth=3)
  assert hybrid.search(["q"], 1).ids.tolist() == [[2]] and first.asked == second.asked == [3]
  assert (len(hybrid), hybrid.corpus_fingerprint) == (9, "c")
  with pytest.raises(UserError, match="ask for 1 to 9"):
    hybrid.search(["q"], 10)
  with pytest.raises(UserError, match="different corpora"):
    HybridRetriever([first, Fixed(SECOND, corpus_fingerprint="d")], reciprocal_ranks)


def test_no_questions():
  nothing = SearchResult(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32))
  for found in (reciprocal_ranks([nothing] * 2, 2), weighted_sum([nothing] * 2, 2, (1, 1))):
    assert found.ids.shape == found.scores.shape == (0, 2)
