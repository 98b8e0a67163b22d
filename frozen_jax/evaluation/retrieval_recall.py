"""Recall of retrieval: how often the first k passages hold the gold passage, or an answer."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from frozen_jax.text.answers import contains, normalise


def gold_recall(
  ids: Int[np.ndarray, "Q k"], gold: Sequence[Sequence[int]], ranks: Sequence[int]
) -> dict[str, float]:
  """`recall_at_K` in percent for each K of `ranks`: a gold passage is among the first K.

  Args:
    ids: the passages retrieved for each question, best first.
    gold: of each question the ids of its gold passages; one without any counts as missed.
  """
  hits = [np.isin(retrieved, list(right)) for retrieved, right in zip(ids, gold, strict=True)]
  return _recall_at(hits, ranks)


def answer_recall(
  ids: Int[np.ndarray, "Q k"],
  answers: Sequence[Sequence[str]],
  text_of: Callable[[int], str],
  ranks: Sequence[int],
) -> dict[str, float]:
  """`answer_recall_at_K` in percent: one of the first K passages holds an accepted answer.

  The answer occurs there in whole words once both are normalised as for exact match (see
  `text.answers.contains`). `text_of` gives a passage's text by its id; it is called once for each.
  """
  text = functools.cache(lambda id: normalise(text_of(id)))
  hits = []
  for retrieved, accepted in zip(ids.tolist(), answers, strict=True):
    wanted = [normalise(answer) for answer in accepted]
    hits.append(np.array([contains(text(id), wanted) for id in retrieved], bool))
  return {f"answer_{name}": value for name, value in _recall_at(hits, ranks).items()}


def _recall_at(hits: Sequence[np.ndarray], ranks: Sequence[int]) -> dict[str, float]:
  depth = min((len(row) for row in hits), default=0)
  if not hits or max(ranks) > depth:
    raise ValueError(f"{len(hits)} questions with {depth} passages each, of the ranks {ranks}")
  return {f"recall_at_{k}": 100.0 * float(np.mean([row[:k].any() for row in hits])) for k in ranks}
