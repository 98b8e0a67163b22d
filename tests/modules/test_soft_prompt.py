"""Where a soft prompt starts."""

import jax

from frozen_jax.modules import soft_prompt


def test_a_text_is_repeated_or_cut_to_the_length():
  assert soft_prompt.repeat_to_length([3, 1], 5).tolist() == [3, 1, 3, 1, 3]
  assert soft_prompt.repeat_to_length([3, 1, 4], 2).tolist() == [3, 1]


def test_random_tokens_are_distinct():
  ids = soft_prompt.random_token_ids(jax.random.key(0), 10, 10)
  assert sorted(ids.tolist()) == list(range(10)) != ids.tolist()
