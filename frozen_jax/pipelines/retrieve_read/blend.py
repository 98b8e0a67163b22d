"""The re-ranker's scores and the retrievers' as one score, weighted on validation questions.

A re-ranker that was trained on a few thousand questions knows things that the retrievers do not,
and the other way round. The score of a passage is a weighted sum of the re-ranker's and of each
retriever's; the weights are those under which the softmax over a question's passages gives the
right ones the highest likelihood.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from frozen_jax.core.json_row import Row
from frozen_jax.retrieval.corpus import Passage
from frozen_jax.text.answers import contains, normalise

RE_RANKER_SCORE = "re_ranker"
# Of the squared weights, each times the spread of its scores: where the questions leave them open
# they stay small.
_DECAY = 1e-3


def fit_weights(rows: Iterable[Row]) -> dict[str, float]:
  """The weight of the re-ranker and of each retriever, none below 0.

  A question's right passages are those that its row names, else those that hold an answer.
  Questions that have none among their passages, or nothing else, say nothing; where all do, the
  re-ranker's weight is 1 and the others' are 0.
  """
  from scipy.optimize import minimize  # slow to import

  names, features, right = [RE_RANKER_SCORE], [], []
  for row in rows:
    names = [RE_RANKER_SCORE, *row["rankings"]]
    marks = _right(row)
    if marks.any() and not marks.all():
      features.append(_features(row, names))
      right.append(marks)
  if not features:
    return dict(zip(names, [1.0, *(0.0 for _ in names[1:])], strict=True))
  spread = np.mean([own.std(axis=0) for own in features], axis=0)  # they are of different units
  spread = np.where(spread > 0, spread, 1.0)
  features = [own / spread for own in features]

  def loss(weights: np.ndarray) -> float:
    scores = [own @ weights for own in features]
    missed = [_log_sum(s) - _log_sum(s[marks]) for s, marks in zip(scores, right, strict=True)]
    return float(np.mean(missed) + _DECAY * np.square(weights).sum())

  start = np.ones(len(names))
  found = minimize(loss, start, method="L-BFGS-B", bounds=[(0.0, None)] * len(names))
  return dict(zip(names, (found.x / spread).tolist(), strict=True))


def blended(rows: Iterable[Row], weights: Mapping[str, float]) -> Iterator[Row]:
  """The rows with their passages in the order of the weighted sums, which are their scores.

  Of equal sums the earlier passage comes first.
  """
  names = list(weights)
  for row in rows:
    scores = _features(row, names) @ np.array([weights[name] for name in names])
    scored = [one | {"score": float(score)} for one, score in zip(row["ctxs"], scores, strict=True)]
    yield {**row, "ctxs": sorted(scored, key=lambda one: -one["score"])}


def _features(row: Row, names: Sequence[str]) -> np.ndarray:
  """The scores of re-ranker and retrievers for each passage of a row, float64 [G, names].

  A passage that a retriever has not found counts as the worst that it has.
  """
  columns = [[one["score"] for one in row["ctxs"]]]
  for name in names[1:]:
    given = dict(zip(row["rankings"][name], row["scores"][name], strict=True))
    worst = min(given.values(), default=0.0)
    columns.append([given.get(one["id"], worst) for one in row["ctxs"]])
  return np.array(columns, np.float64).T


def _right(row: Row) -> np.ndarray:
  """Which of a row's passages answer it, bool [G]."""
  if row["positive_ids"]:
    return np.array([one["id"] in row["positive_ids"] for one in row["ctxs"]], bool)
  wanted = [normalise(answer) for answer in row["answers"]]
  texts = (Passage("", one["title"], one["text"]).joined() for one in row["ctxs"])
  return np.array([contains(normalise(text), wanted) for text in texts], bool)


def _log_sum(scores: np.ndarray) -> float:
  return float(np.logaddexp.reduce(scores))
