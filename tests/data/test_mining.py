"""Hard negatives: what is passed over, what is left out, what is refused."""

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.mining import mine_groups
from tests.re_ranking import PASSAGES


def test_mining_passes_over_positives_and_equal_texts():
  texts = ["yes", "no", "yes", "perhaps", "no", "never"]
  row = {"question": "w1", "answers": ["Yes"]}
  (group,) = mine_groups([row], [[0]], [[3, 0, 2, 1, 4, 5]], texts.__getitem__, depth=2)
  assert group.positives == (0,) and group.negatives == (3, 1)
  (group,) = mine_groups([row], [[0]], [[3, 0, 2, 1, 4, 5]], texts.__getitem__)
  assert group.negatives == (3, 1, 5)


def test_mining_leaves_out_what_merely_holds_an_answer():
  texts = ["It is the Eiffel Tower.", "An eiffel, tower of sand", "Eiffel towers", "Big Ben"]
  row = {"question": "w1", "answers": ["Eiffel Tower"]}
  given = [row], [[0]], [[1, 2, 3]], texts.__getitem__
  assert mine_groups(*given)[0].negatives == (1, 2, 3)
  assert mine_groups(*given, drop_answers=True)[0].negatives == (2, 3)


def test_a_question_without_a_positive_is_refused():
  row = {"id": "q7", "question": "who was it", "answers": ["me"]}
  with pytest.raises(UserError, match=r"question q7 \('who was it'\) has no passage that answers"):
    mine_groups([row], [[]], [[1]], PASSAGES.__getitem__)
