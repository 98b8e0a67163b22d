"""Merging sampled answers, and what is read off the merged ones."""

import math
import random

import pytest

from frozen_jax.evaluation.candidates import (
  Candidate,
  agreement,
  likeliest,
  majority,
  merged,
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
  candidates = merged(SAMPLES)
  assert candidates == [
    Candidate("lima", 4, -1.0),  # twice of four spellings
    Candidate("Cuzco.", 2, -0.5),  # once each: the likelier
    Candidate("Quito", 1, -3.0),
    Candidate("", 1, -6.0),
  ]
  assert majority(candidates) == "lima"
  assert likeliest(candidates) == "Cuzco."
  assert agreement(candidates) == 0.5


def test_the_oracle_takes_what_is_right_or_else_what_is_nearest():
  candidates = merged(SAMPLES)
  assert oracle(candidates, ["Bogota", "QUITO!"]) == "Quito"
  assert oracle(candidates, ["the city of Cuzco"]) == "Cuzco."
  assert oracle(candidates, ["Bogota"]) == majority(candidates), "of equals the first"


def test_equal_counts_go_by_likelihood_and_equal_likelihoods_by_text():
  candidates = merged([("c", -2.0), ("b", -1.0), ("d", -1.0)])
  assert [c.text for c in candidates] == ["b", "d", "c"]
  assert majority(candidates) == likeliest(candidates) == "b"
  assert likeliest(merged([("x", -1.0), ("y", -1.0), ("y", -2.0)])) == "y"


def test_of_spellings_equal_in_count_and_likelihood_the_first_stands():
  assert merged([("Lima!", -1.0), ("LIMA", -1.0)]) == [Candidate("Lima!", 2, -1.0)]


def test_spelling_counts_go_before_likelihood():
  assert merged([("Oslo", -9.0), ("oslo", -1.0), ("Oslo", -8.0)]) == [Candidate("Oslo", 3, -1.0)]


def test_answers_of_which_nothing_is_left_are_one_candidate_that_counts():
  candidates = merged([("", -1.0), ("the", -2.0), ("...", -3.0), ("Rome", -0.5)])
  assert candidates == [Candidate("", 3, -1.0), Candidate("Rome", 1, -0.5)]
  assert majority(candidates) == ""
  assert agreement(candidates) == 0.75


def test_one_candidate_has_all_of_the_agreement():
  candidates = merged([("Rome", -1.0), ("rome", -2.0)])
  assert agreement(candidates) == 1.0


def test_no_samples():
  with pytest.raises(ValueError, match="no samples"):
    merged([])


@pytest.mark.parametrize("seed", range(20))
def test_any_samples(seed):
  draw = random.Random(seed)
  spellings = ["Lima", "lima", "the lima", "Oslo", "oslo.", "", "Rome"]
  samples = [(draw.choice(spellings), -draw.random()) for _ in range(draw.randint(1, 24))]
  candidates = merged(samples)
  assert sum(c.count for c in candidates) == len(samples)
  assert max(c.log_prob for c in candidates) == max(log_prob for _, log_prob in samples)
  assert len({c.text.lower().strip("the .") for c in candidates}) == len(candidates)
  assert [c.count for c in candidates] == sorted((c.count for c in candidates), reverse=True)
  assert {c.text for c in candidates} <= {text for text, _ in samples}
  assert 1 / len(candidates) <= agreement(candidates) <= 1
  assert math.isclose(agreement(candidates), candidates[0].count / len(samples))
  # The order of the samples and of the candidates changes nothing: no two likelihoods are equal.
  assert merged(draw.sample(samples, len(samples))) == candidates
  shuffled = draw.sample(candidates, len(candidates))
  assert majority(shuffled) == majority(candidates) == candidates[0].text
  assert likeliest(shuffled) == likeliest(candidates)
  assert agreement(shuffled) == agreement(candidates)
