"""What pass two reads of a question: candidates in their template, their order, the target."""

import dataclasses

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.propose_select.rendering import is_training_row, render
from frozen_jax.pipelines.propose_select.settings import CandidateSettings, CandidateTemplate

ROW = {
  "id": "PE/0",
  "question": "What is the capital of Peru?",
  "answers": ["Lima", "City of Kings"],
  "samples": [["Cusco", -0.5], ["city of kings", -2.0], ["Cusco", -0.5], ["Quito", -3.0]],
}
SETTINGS = CandidateSettings()


def with_template(**template):
  return dataclasses.replace(SETTINGS, template=CandidateTemplate(**template))


def test_the_most_frequent_stands_first_and_the_target_is_the_first_answer():
  (row,) = render(ROW, SETTINGS)
  assert row["input"] == (
    "Question: What is the capital of Peru?\n"
    "Proposed answers: Cusco (61%), city of kings (14%), Quito (5%)\nAnswer:"
  )
  assert row["id"] == "PE/0" and row["target"] == "Lima"
  assert row["answers"] == ["Lima", "City of Kings"]
  assert row["candidates"][0] == ["Cusco", 2, -0.5]


def test_in_training_the_target_is_spelt_as_it_was_proposed_and_the_order_changes():
  rows = list(render(ROW, SETTINGS, permutations=6))
  assert [row["id"] for row in rows] == [f"PE/0/{n}" for n in range(6)]
  assert {row["target"] for row in rows} == {"city of kings"}
  assert len({row["input"] for row in rows}) > 1
  assert rows == list(render(ROW, SETTINGS, permutations=6))
  assert rows != list(render(ROW, SETTINGS, permutations=6, seed=1))


def test_other_templates_and_fewer_candidates():
  settings = with_template(candidate="{text}: {share}%, {count}", separator=" | ")
  (row,) = render(ROW, dataclasses.replace(settings, max_candidates=2))
  assert "answers: Cusco: 50%, 2 | city of kings: 25%, 1\n" in row["input"]


@pytest.mark.parametrize(
  "learn_from, max_candidates, expected",
  [("all", 1, True), ("right", 1, False), ("right", 2, True), ("right", 3, True)],
)
def test_what_pass_two_learns_from(learn_from, max_candidates, expected):
  """The right candidate, an accepted answer in other letters, is the second most frequent."""
  changes = {"learn_from": learn_from, "max_candidates": max_candidates}
  assert is_training_row(ROW, dataclasses.replace(SETTINGS, **changes)) == expected


def test_a_question_without_answers_is_rendered_as_well():
  bare = {key: value for key, value in ROW.items() if key != "answers"}
  (row,) = render(bare, SETTINGS)
  assert "target" not in row and "answers" not in row and "Cusco (61%)" in row["input"]


def test_of_a_packed_prompt_the_question_is_shown_and_the_passages_are_kept():
  own = {"original_question": ROW["question"], "input": "A text.\n\nQuestion: ..."}
  packed = {**ROW, **own, "passages": [1]}
  del packed["question"]
  (row,) = render(packed, SETTINGS)
  assert row["input"].startswith("Question: What is the capital") and row["passages"] == [1]


@pytest.mark.parametrize(
  "template, message",
  [
    ({"prompt": "{question} {answer}"}, "prompt has answer; it may hold candidates, question"),
    ({"prompt": "{question} {}"}, "prompt has ;"),
    ({"candidate": "{count}"}, "candidate lacks {text}"),
    ({"separator": "{x}"}, "separator has x; it may hold no fields"),
    ({"candidate": "{text"}, "candidate is malformed"),
  ],
)
def test_mistakes(template, message):
  with pytest.raises(UserError) as caught:
    with_template(**template)
  assert message in str(caught.value)
