"""Candidates from the sampled answers of a question: equal answers are merged, counted, sorted.

Answers are equal if SQuAD's normalisation (`text.answers`) makes them equal, as for exact match.
Majority voting over samples is self-consistency (Wang et al. 2023).
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

from frozen_jax.text.answers import exact_match, f1, normalise


class Candidate(NamedTuple):
  """An answer. text: its most frequent spelling. count: samples that gave it. log_prob: of its
  likeliest sample, in nats."""

  text: str
  count: int
  log_prob: float


def merge_samples(samples: Sequence[tuple[str, float]]) -> list[Candidate]:
  """The different answers among samples (text, log-probability of the whole sequence in nats).

  Sorted by count, then by log-probability, then by text. The text of a candidate is its most
  frequent spelling; of equally frequent ones the likeliest, then the first sampled.

  The log-probability is the likeliest sample's and not that of all spellings together: the sum
  grows with each further spelling that is sampled, so that the likelihood would include part of
  the count, while the best sample's is what a search for the likeliest answer maximises.

  An empty answer is a candidate like any other (as is one of which normalising leaves nothing):
  pass one did give it, and without it the agreement of the rest would be too high.
  Raises ValueError for no samples.
  """
  if not samples:
    raise ValueError("no samples to merge")
  groups: dict[str, list[tuple[str, float]]] = {}
  for text, log_prob in samples:
    groups.setdefault(normalise(text), []).append((text, log_prob))
  candidates = [
    Candidate(_spelling(group), len(group), max(log_prob for _, log_prob in group))
    for group in groups.values()
  ]
  return sorted(candidates, key=_by_count)


def _by_count(candidate: Candidate) -> tuple[int, float, str]:
  return -candidate.count, -candidate.log_prob, candidate.text


def _spelling(group: Sequence[tuple[str, float]]) -> str:
  counts = collections.Counter(text for text, _ in group)
  text, _ = max(group, key=lambda sample: (counts[sample[0]], sample[1]))  # of equals the first
  return text


def majority_vote(candidates: Sequence[Candidate]) -> str:
  """The most frequent answer; of equally frequent ones the likeliest. Candidates in any order."""
  return min(candidates, key=_by_count).text


def most_likely(candidates: Sequence[Candidate]) -> str:
  """The answer of the likeliest sample; of equally likely ones the most frequent."""
  return min(candidates, key=lambda c: (-c.log_prob, *_by_count(c))).text


def oracle(candidates: Sequence[Candidate], accepted: Sequence[str]) -> str:
  """The best answer by exact match with an accepted one, then by F1; of equals the first.

  What a perfect choice among the candidates would give: an upper bound.
  """

  def quality(candidate: Candidate) -> tuple[bool, float]:
    return exact_match(candidate.text, accepted), f1(candidate.text, accepted)

  return max(candidates, key=quality).text


def agreement(candidates: Sequence[Candidate]) -> float:
  """The fraction of the samples that gave the most frequent answer, above 0 and up to 1."""
  counts = [candidate.count for candidate in candidates]
  return max(counts) / sum(counts)
