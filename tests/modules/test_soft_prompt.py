"""The soft prompt's starts and how it is joined to the text."""

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.modules import soft_prompt


def test_a_text_is_repeated_or_cut_to_the_length():
  assert soft_prompt.repeat_to_length([3, 1], 5).tolist() == [3, 1, 3, 1, 3]
  assert soft_prompt.repeat_to_length([3, 1, 4], 2).tolist() == [3, 1]


def test_random_tokens_are_distinct():
  ids = soft_prompt.random_token_ids(jax.random.key(0), 10, 10)
  assert sorted(ids.tolist()) == list(range(10)) != ids.tolist()


def test_the_prompt_stands_before_the_text_in_the_text_s_dtype():
  prompt, text = 0.5 * jnp.ones((3, 2)), jnp.zeros((4, 5, 2), jnp.bfloat16)
  mask = jnp.asarray([[0, 0, 1, 1, 1]] * 4)
  joined, joined_mask = soft_prompt.prepend(prompt, text, mask)
  assert joined.shape == (4, 8, 2) and joined.dtype == jnp.bfloat16
  assert (joined[:, :3] == 0.5).all() and (joined[:, 3:] == 0).all()
  assert joined_mask.tolist() == [[1, 1, 1, 0, 0, 1, 1, 1]] * 4


def test_rows_may_have_prompts_of_their_own():
  prompts = jnp.arange(8.0).reshape(2, 2, 2)
  joined, _ = soft_prompt.prepend(prompts, jnp.zeros((2, 1, 2)), jnp.ones((2, 1), jnp.int32))
  np.testing.assert_array_equal(joined[:, :2], prompts)


def test_without_a_prompt_nothing_changes():
  text, mask = jnp.ones((1, 2, 2)), jnp.ones((1, 2), jnp.int32)
  assert soft_prompt.prepend(None, text, mask) == (text, mask)
