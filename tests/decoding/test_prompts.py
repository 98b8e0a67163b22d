"""Prompts as few batch shapes."""

import numpy as np
import pytest

from frozen_jax.core.types import Prompt
from frozen_jax.decoding.prompts import left_padded

TEXTS = [[4, 9, 33], [7], [50, 2, 8, 19, 21, 3, 3], list(range(1, 20))]
PROMPTS = [Prompt(text) for text in TEXTS]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_left_padding_keeps_every_prompt_once(batch_size):
  seen = {}
  for rows, batch in left_padded(PROMPTS, batch_size):
    tokens, mask = batch["tokens"], batch["mask"]
    assert tokens.shape == mask.shape and tokens.shape[1] % 16 == 0
    assert (np.diff(mask, axis=1) >= 0).all()  # padding on the left only
    for row, index in enumerate(rows):
      seen[index] = tokens[row][mask[row] == 1].tolist()
    assert not mask[len(rows) :].any()
  assert [seen[index] for index in range(len(TEXTS))] == TEXTS


def test_the_other_inputs():
  texts = [[1, 2, 3], list(range(1, 20))]
  prompts = [Prompt(text, text, task) for text, task in zip(texts, (2, 0), strict=True)]
  ((rows, batch),) = left_padded([*prompts, Prompt([9], [8], 1)], 4)
  order = [*prompts, Prompt([9], [8], 1)]
  assert batch["encoder_tokens"].shape == batch["encoder_mask"].shape == (4, 32)
  for row, index in enumerate(rows):
    known = batch["encoder_mask"][row] == 1
    assert batch["encoder_tokens"][row][known].tolist() == order[index].encoder_tokens
    assert (np.diff(batch["encoder_mask"][row]) <= 0).all()  # padding on the right
    assert batch["task"][row] == order[index].task
  assert not batch["encoder_mask"][3].any() and batch["task"][3] == 0
