"""Scores worked out by hand, after the rules of SQuAD."""

import pytest

from frozen_jax.text.answers import contains, exact_match, f1, normalise


@pytest.mark.parametrize(
  "answer, normalised",
  [
    ("The  Eiffel-Tower!", "eiffeltower"),
    ("an apple a day", "apple day"),
    ("Theatre", "theatre"),
    ("  Côte d’Ivoire ", "côte divoire"),
    ("Ｌｉｍａ", "lima"),
    ("e\u0301cole", "école"),
    ("«Paris»", "paris"),
    ("U.S. dollar", "us dollar"),
    ("the", ""),
    ("3.5", "35"),
  ],
)
def test_normalise(answer, normalised):
  assert normalise(answer) == normalised


def test_exact_match_takes_any_answer():
  assert exact_match("The Netherlands.", ["Holland", "Netherlands"])
  assert not exact_match("Netherlands Antilles", ["Holland", "Netherlands"])
  assert not exact_match("Malé", ["Male"])
  assert not exact_match("x", [])


@pytest.mark.parametrize(
  "prediction, answers, score",
  [
    ("the Peruvian sol", ["Peruvian sol"], 1.0),
    ("sol", ["Peruvian sol"], 2 / 3),  # precision 1, recall 1/2
    ("It is the Peruvian sol", ["sol"], 0.4),  # precision 1/4, recall 1
    ("It is the Peruvian sol", ["sol", "Peruvian sol"], 2 / 3),  # precision 1/2, recall 1
    ("sol sol", ["sol"], 2 / 3),  # a word counts as often as it occurs
    ("euro", ["sol"], 0.0),
    ("the", ["a"], 1.0),  # nothing is left of either
    ("the", ["sol"], 0.0),
    ("sol", [], 0.0),
  ],
)
def test_f1(prediction, answers, score):
  assert f1(prediction, answers) == pytest.approx(score)


def test_answers_in_scripts_without_spaces_are_contained():
  text = normalise("東京は日本の首都です。 Tokyo Tower")
  assert contains(text, ["東京"]) and contains(text, ["首都"]) and contains(text, ["tokyo"])
  assert not contains(text, ["大阪", "tok", "ower"])
