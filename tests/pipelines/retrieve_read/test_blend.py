"""Weights of re-ranker and retrievers: what they favour, and the ranking that they give."""

import numpy as np
import pytest

from frozen_jax.pipelines.retrieve_read.blend import blended, fit_weights


def rows(count=60, trusted="dense", seed=0):
  """Questions with five passages; the right one is mostly first with the retriever to be trusted.

  The re-ranker's scores and the other retriever's order are drawn at random.
  """
  draw, questions = np.random.default_rng(seed), []
  for number in range(count):
    right = f"p{draw.integers(5)}"
    others = [f"p{passage}" for passage in draw.permutation(5) if f"p{passage}" != right]
    good = [right, *others] if draw.random() < 0.9 else [*others, right]
    chance = [f"p{passage}" for passage in draw.permutation(5)]
    rankings = {"dense": good, "bm25": chance}
    if trusted == "bm25":
      rankings = {"dense": chance, "bm25": good}
    contexts = [
      {"id": f"p{passage}", "title": "", "text": f"text {passage}", "score": float(draw.normal())}
      for passage in range(5)
    ]
    row = {"id": str(number), "question": "?", "answers": [f"text {right[1:]}"], "ctxs": contexts}
    scores = {"dense": [0.9, 0.7, 0.6, 0.5, 0.5], "bm25": [30.0, 20.0, 15.0, 14.0, 2.0]}
    questions.append(row | {"positive_ids": [right], "rankings": rankings, "scores": scores})
  return questions


@pytest.mark.parametrize("trusted, other", [("dense", "bm25"), ("bm25", "dense")])
def test_what_finds_the_right_passage_gets_the_weight(trusted, other):
  weights = fit_weights(rows(200, trusted))
  assert set(weights) == {"re_ranker", "dense", "bm25"} and min(weights.values()) >= 0
  spread = {"re_ranker": 1.0, "dense": 0.15, "bm25": 9.0}  # of the scores above
  counted = {name: weight * spread[name] for name, weight in weights.items()}
  assert counted[trusted] > 3 * max(counted["re_ranker"], counted[other])
  new = rows(100, trusted, seed=1)
  first = [row["ctxs"][0]["id"] for row in blended(new, weights)]
  right = np.mean([id == row["positive_ids"][0] for id, row in zip(first, new, strict=True)])
  assert right > 0.8


def test_answers_mark_what_is_right_where_no_passage_is_named():
  named, bare = rows(), [row | {"positive_ids": []} for row in rows()]
  assert fit_weights(bare) == fit_weights(named)


def test_questions_without_a_right_passage_leave_the_re_rankers_ranking():
  lost = [row | {"positive_ids": ["elsewhere"]} for row in rows(4)]
  weights = fit_weights(lost)
  assert weights == {"re_ranker": 1.0, "dense": 0.0, "bm25": 0.0}
  for before, after in zip(lost, blended(lost, weights), strict=True):
    assert after["ctxs"] == sorted(before["ctxs"], key=lambda one: -one["score"])


def test_the_unit_of_a_retrievers_scores_does_not_matter():
  first = rows()
  scaled = [
    row | {"scores": row["scores"] | {"bm25": [100 * one for one in row["scores"]["bm25"]]}}
    for row in first
  ]
  weights, others = fit_weights(first), fit_weights(scaled)
  assert 100 * others["bm25"] == pytest.approx(weights["bm25"], rel=1e-3)
  assert others["dense"] == pytest.approx(weights["dense"], rel=1e-3)


def test_a_blended_score_is_the_weighted_sum_of_scores():
  (row,) = rows(1)
  row["rankings"]["bm25"], row["scores"]["bm25"] = ["p3", "p9"], [30.0, 20.0]  # others: not found
  weights = {"re_ranker": 2.0, "dense": 0.5, "bm25": 1.0}
  (ranked,) = blended([row], weights)
  re_ranked = {one["id"]: one["score"] for one in row["ctxs"]}
  for one in ranked["ctxs"]:
    dense = row["scores"]["dense"][row["rankings"]["dense"].index(one["id"])]
    bm25 = 30.0 if one["id"] == "p3" else 20.0
    expected = 2.0 * re_ranked[one["id"]] + 0.5 * dense + bm25
    assert one["score"] == pytest.approx(expected)
  scores = [one["score"] for one in ranked["ctxs"]]
  assert scores == sorted(scores, reverse=True)
