"""The built-in corpus: its ids are unique, and the passage named for a question holds an answer."""

import pytest

from frozen_jax.data.builders import world_passages
from frozen_jax.data.builders.countries import SPLITS
from frozen_jax.data.builders.questions import questions
from frozen_jax.text.answers import contains, normalise


def test_ids_are_unique_and_texts_end():
  found = list(world_passages.passages())
  assert len({id for id, _, _ in found}) == len(found) == 390
  assert all(title and text.endswith(".") for _, title, text in found)


@pytest.mark.parametrize("split", SPLITS)
def test_the_passage_of_a_question_holds_an_answer(split):
  texts = {id: f"{title} {text}" for id, title, text in world_passages.passages()}
  for row in questions(split):
    (id,) = world_passages.positive_ids(row["id"])
    wanted = [normalise(answer) for answer in row["answers"]]
    assert contains(normalise(texts[id]), wanted), row
