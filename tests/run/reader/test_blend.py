"""Weights of re-ranker and retrievers: what they favour, and the order that they make."""

import numpy as np
import pytest

from frozen_jax.run.reader.blend import blended, fit_weights


def rows(count=60, trusted="dense", seed=0):
  """Questions with five passages; the right one is mostly first with the retriever to be trusted.

  The re-ranker's scores and the other retriever's order are drawn at random.
  """
  draw, made = np.random.default_rng(seed), []
  for number in range(count):
    right = f"p{draw.integers(5)}"
    others = [f"p{at}" for at in draw.permutation(5) if f"p{at}" != right]
    knowing = [right, *others] if draw.random() < 0.9 else [*others, right]
    guessing = [f"p{at}" for at in draw.permutation(5)]
    found = {"dense": knowing, "bm25": guessing}
    if trusted == "bm25":
      found = {"dense": guessing, "bm25": knowing}
    contexts = [
      {"id": f"p{at}", "title": "", "text": f"text {at}", "score": float(draw.normal())}
      for at in range(5)
    ]
    row = {"id": str(number), "question": "?", "answers": [f"text {right[1:]}"], "ctxs": contexts}
    made.append(row | {"positive_ids": [right], "orders": found})
  return made


@pytest.mark.parametrize("trusted, other", [("dense", "bm25"), ("bm25", "dense")])
def test_what_finds_the_right_passage_gets_the_weight(trusted, other):
  weights = fit_weights(rows(200, trusted))
  assert set(weights) == {"re_ranker", "dense", "bm25"} and min(weights.values()) >= 0
  assert weights[trusted] > 3 * max(weights["re_ranker"], weights[other])
  new = rows(100, trusted, seed=1)
  first = [row["ctxs"][0]["id"] for row in blended(new, weights)]
  right = np.mean([id == row["positive_ids"][0] for id, row in zip(first, new, strict=True)])
  assert right > 0.8


def test_answers_mark_what_is_right_where_no_passage_is_named():
  named, bare = rows(), [row | {"positive_ids": []} for row in rows()]
  assert fit_weights(bare) == fit_weights(named)


def test_questions_that_say_nothing_leave_the_re_rankers_order():
  lost = [row | {"positive_ids": ["elsewhere"]} for row in rows(4)]
  weights = fit_weights(lost)
  assert weights == {"re_ranker": 1.0, "dense": 0.0, "bm25": 0.0}
  for before, after in zip(lost, blended(lost, weights), strict=True):
    assert after["ctxs"] == sorted(before["ctxs"], key=lambda one: -one["score"])


def test_a_blended_score_is_the_weighted_sum_of_score_and_ranks():
  (row,) = rows(1)
  row["orders"]["bm25"] = ["p3"]  # the others were not found: they stand behind it
  weights = {"re_ranker": 2.0, "dense": 0.5, "bm25": 1.0}
  (made,) = blended([row], weights)
  given = {one["id"]: one["score"] for one in row["ctxs"]}
  for one in made["ctxs"]:
    place = row["orders"]["dense"].index(one["id"])
    behind = 0.0 if one["id"] == "p3" else np.log(2)
    expected = 2.0 * given[one["id"]] - 0.5 * np.log(1 + place) - behind
    assert one["score"] == pytest.approx(expected)
  scores = [one["score"] for one in made["ctxs"]]
  assert scores == sorted(scores, reverse=True)
