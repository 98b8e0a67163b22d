"""Ids that a model does not have are refused, by name."""

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.text.token_ids import check_ids


class Letters:
  def convert_ids_to_tokens(self, id):
    return "abcdef"[id] if id < 6 else None


@pytest.mark.parametrize("ids", [[], [0, 3], (3, 3, 0), np.array([2, 1], np.int32)])
def test_ids_of_the_table(ids):
  check_ids(ids, 4, "text 1")


@pytest.mark.parametrize(
  "ids, said",
  [
    ([1, 5, 9], r"text 1: token 2 has the id 5 \('f'\), and the model has ids from 0 to 3; leave"),
    ([0, 3, 3, 9], "text 1: token 4 has the id 9, and"),
    ([4], r"token 1 has the id 4 \('e'\)"),
    ([1, -100], "text 1: token 2 has the id -100, .* padding of labels.* a mask"),
    (np.array([2, -1]), "token 2 has the id -1, "),
    ([2**40], "token 1 has the id 1099511627776"),
  ],
)
def test_the_first_other_one_is_named(ids, said):
  with pytest.raises(UserError, match=said) as error:
    check_ids(ids, 4, "text 1", Letters())
  assert "\n" not in str(error.value)
  check_ids(ids, None, "text 1")
