"""Merging sampled answers, and what is read off the merged ones."""

import math
import random

import pytest

from frozen_jax.evaluation.candidates import (
  Candidate,
  agreement,
  majority_vote,
  merge_samples,
  most_likely,
  oracle,
)

SAMPLES = [
  ("Lima", -2.0),
  ("Cuzco.", -0.5),
  ("lima", -1.0),
  ("the Lima", -1.5),
  ("Quito", -3.0),
  ("lima", -1.0),
  ("cuzco", -4.0),
  ("", -6.0),
]


def test_by_hand():
  candidates = merge_samples(SAMPLES)
  assert candidates == [
    Candidate("lima", 4, -1.0),  # twice of four spellings
    Candidate("Cuzco.", 2, -0.5),  # once each: the likelier
    Candidate("Quito", 1, -3.0),
    Candidate("", 1, -6.0),
  ]
  assert majority_vote(candidates) == "lima"
  assert most_likely(candidates) == "Cuzco."
  assert agreement(candidates) == 0.5


def test_the_oracle_takes_what_is_right_or_else_what_is_nearest():
  candidates = merge_samples(SAMPLES)
  assert oracle(candidates, ["Bogota", "QUITO!"]) == "Quito"
  assert oracle(candidates, ["the city of Cuzco"]) == "Cuzco."
  assert oracle(candidates, ["Bogota"]) == majority_vote(candidates), "of equals the first"


def test_equal_counts_go_by_likelihood_and_equal_likelihoods_by_text():
  candidates = merge_samples([("c", -2.0), ("b", -1.0), ("d", -1.0)])
  assert [c.text for c in candidates] == ["b", "d", "c"]
  assert majority_vote(candidates) == most_likely(candidates) == "b"
  assert most_likely(merge_samples([("x", -1.0), ("y", -1.0), ("y", -2.0)])) == "y"


def test_of_spellings_equal_in_count_and_likelihood_the_first_stands():
  assert merge_samples([("Lima!", -1.0), ("LIMA", -1.0)]) == [Candidate("Lima!", 2, -1.0)]


def test_spelling_counts_go_before_likelihood():
  assert merge_samples([("Oslo", -9.0), ("oslo", -1.0), ("Oslo", -8.0)]) == [
    Candidate("Oslo", 3, -1.0)
  ]


def test_answers_of_which_nothing_is_left_are_one_candidate_that_counts():
  candidates = merge_samples([("", -1.0), ("the", -2.0), ("...", -3.0), ("Rome", -0.5)])
  assert candidates == [Candidate("", 3, -1.0), Candidate("Rome", 1, -0.5)]
  assert majority_vote(candidates) == ""
  assert agreement(candidates) == 0.75


def test_one_candidate_has_all_of_the_agreement():
  candidates = merge_samples([("Rome", -1.0), ("rome", -2.0)])
  assert agreement(candidates) == 1.0


def test_no_samples():
  with pytest.raises(ValueError, match="no samples"):
    merge_samples([])


@pytest.mark.parametrize("seed", range(20))
def test_any_samples(seed):
  draw = random.Random(seed)
  spellings = ["Lima", "lima", "the lima", "Oslo", "oslo.", "", "Rome"]
  samples = [(draw.choice(spellings), -draw.random()) for _ in range(draw.randint(1, 24))]
  candidates = merge_samples(samples)
  assert sum(c.count for c in candidates) == len(samples)
  assert max(c.log_prob for c in candidates) == max(log_prob for _, log_prob in samples)
  assert len({c.text.lower().strip("the .") for c in candidates}) == len(candidates)
  assert [c.count for c in candidates] == sorted((c.count for c in candidates), reverse=True)
  assert {c.text for c in candidates} <= {text for text, _ in samples}
  assert 1 / len(candidates) <= agreement(candidates) <= 1
  assert math.isclose(agreement(candidates), candidates[0].count / len(samples))
  # The order of the samples and of the candidates changes nothing: no two likelihoods are equal.
  assert merge_samples(draw.sample(samples, len(samples))) == candidates
  shuffled = draw.sample(candidates, len(candidates))
  assert majority_vote(shuffled) == majority_vote(candidates) == candidates[0].text
  assert most_likely(shuffled) == most_likely(candidates)
  assert agreement(shuffled) == agreement(candidates)
