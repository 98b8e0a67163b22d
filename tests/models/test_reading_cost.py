"""What it takes to read a text: counted from shapes, whatever the weights are stored in."""

import jax
import jax.numpy as jnp
import pytest

from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.models.reading_cost import reading_flops
from frozen_jax.modules.settings import PromptSettings
from tests.evaluation.tiny import CONFIG, PARAMS, tiny_lm, tuned


@pytest.mark.parametrize("length", [2, 7])
def test_a_prompt_costs_as_many_positions_as_it_has(length):
  lm, method = tiny_lm(), PromptTuning(CONFIG, PromptSettings(length=length, text=""))
  tuned_prompt = tuned(lm, method, method.init(lm, jax.random.key(0)))
  longer = reading_flops(tuned(lm), 9 + length)
  assert reading_flops(tuned_prompt, 9) == pytest.approx(longer, rel=5e-3)
  assert longer > 1.1 * reading_flops(tuned(lm), 9)


def test_the_type_of_the_weights_counts_for_nothing():
  halved = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
  assert reading_flops(tuned(tiny_lm(halved)), 8) == reading_flops(tuned(tiny_lm()), 8)


def test_nothing_of_the_rows_is_counted_twice():
  """About two FLOPs for each weight of the layers and token, and for the last token's logits."""
  layers = sum(leaf.size for leaf in jax.tree.leaves(PARAMS["layers"]))
  embedding = CONFIG.vocab_size * CONFIG.width
  products = 2 * (20 * layers + embedding)
  assert products < reading_flops(tuned(tiny_lm()), 20) < 2.5 * products
