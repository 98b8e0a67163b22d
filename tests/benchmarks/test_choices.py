"""Both sides of `rank_classification` do the same work, on the same rows."""

import json

import jax
import numpy as np
import pytest

from benchmarks import choices
from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Prompt
from frozen_jax.models.choice_scoring import ChoiceQuestion
from frozen_jax.models.frozen_lm import FrozenLM

CONFIG = DecoderConfig(
  vocab_size=31, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, tied=True
)


def test_side_by_side_equals_one_by_one():
  lm = FrozenLM("tiny", CONFIG, decoder.random_params(CONFIG, jax.random.key(0)), None, "")
  asked = [
    ChoiceQuestion(Prompt([4, 9, 3]), [[5], [6, 7]], [1, 2]),
    ChoiceQuestion(Prompt(list(range(1, 31))), [[8, 2, 2], [30, 1], [9]], [3, 2, 1]),
  ]
  ours, loop = (side(lm, asked) for side in (choices.side_by_side, choices.one_by_one))
  for a, b in zip(ours, loop, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_rows_are_spread_over_the_file(smollm2, tmp_path):
  lm = FrozenLM("", smollm2.config, smollm2.params, smollm2.tokenizer, smollm2.fingerprint)
  rows = [
    {"input": f"Is {n} even?", "choices": ["Yes, it is", "No"], "labels": [n % 2]} for n in range(9)
  ]
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  asked = choices.questions(lm, data, 3)
  decode = lm.tokenizer.decode
  assert [decode(question.prompt.tokens) for question in asked] == [
    "Is 0 even?",
    "Is 3 even?",
    "Is 6 even?",
  ]
  assert [decode(choice) for choice in asked[0].choices] == [" Yes, it is", " No"]
  assert asked[1].sizes == [10, 2] and asked[1].labels == [1]
  with pytest.raises(SystemExit, match="has 9 rows and 10 were asked for"):
    choices.questions(lm, data, 10)
