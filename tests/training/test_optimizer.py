import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.training.optimizer import OptimizerOptions, decay_mask, make_optimizer


def tree():
  return {
    "connector": {
      "kernel": jnp.ones((3, 3)),
      "bias": jnp.ones((3,)),
      "norm": {"scale": jnp.ones(3)},
    },
    "prompt": {"vectors": jnp.ones((2, 3))},
  }


def first_update(options, grads=None, steps=10):
  optimizer = make_optimizer(options, steps)
  grads = jax.tree.map(jnp.ones_like, tree()) if grads is None else grads
  return optimizer.update(grads, optimizer.init(tree()), tree())[0]


def test_the_schedule():
  options = OptimizerOptions(learning_rate=0.1, warmup_steps=4, final_fraction=0.2)
  rate = make_optimizer(options, 20).rate
  found = [float(rate(step)["learning_rate"]) for step in (1, 2, 3, 4, 12, 20, 25)]
  halfway = 0.1 * (0.2 + 0.8 * 0.5)
  np.testing.assert_allclose(found, [0.025, 0.05, 0.075, 0.1, halfway, 0.02, 0.02], rtol=1e-6)


def test_without_warm_up_the_first_update_has_the_peak():
  rate = make_optimizer(OptimizerOptions(learning_rate=0.1, final_fraction=0.0), 11).rate
  assert float(rate(1)["learning_rate"]) == pytest.approx(0.1)
  assert float(rate(6)["learning_rate"]) == pytest.approx(0.05)
  assert float(rate(11)["learning_rate"]) == pytest.approx(0, abs=1e-8)


def test_a_final_fraction_of_one_keeps_the_rate():
  rate = make_optimizer(OptimizerOptions(learning_rate=0.1, final_fraction=1.0), 10).rate
  assert {float(rate(step)["learning_rate"]) for step in range(1, 11)} == {float(np.float32(0.1))}


def test_the_updates_follow_the_schedule_that_is_logged():
  """Adam moves each leaf by the rate when the gradient is constant (bias-corrected moments: 1)."""
  options = OptimizerOptions(learning_rate=0.1, warmup_steps=3, clip_norm=None, epsilon=0.0)
  optimizer = make_optimizer(options, 8)
  trainable, state = {"a": jnp.zeros(())}, None
  state = optimizer.init(trainable)
  for step in range(1, 9):
    updates, state = optimizer.update({"a": jnp.ones(())}, state, trainable)
    expected = -float(optimizer.rate(step)["learning_rate"])
    assert float(updates["a"]) == pytest.approx(expected, rel=1e-4), step


def test_rates_of_subtrees_really_differ():
  rates = {"connector": 0.1, "prompt": 0.5}
  updates = first_update(OptimizerOptions(learning_rate=rates))
  np.testing.assert_allclose(updates["connector"]["kernel"], -0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["connector"]["norm"]["scale"], -0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["prompt"]["vectors"], -0.5, rtol=1e-4)
  named = make_optimizer(OptimizerOptions(learning_rate=rates, warmup_steps=2), 10).rate(1)
  assert {name: round(float(rate), 6) for name, rate in named.items()} == {
    "learning_rate/connector": 0.05,
    "learning_rate/prompt": 0.25,
  }


@pytest.mark.parametrize(
  "rates", [{"connector": 0.1}, {"connector": 0.1, "prompt": 0.1, "other": 0.1}, {}]
)
def test_rates_that_miss_or_exceed_what_is_trained(rates):
  with pytest.raises(UserError, match=r"what is trained is \['connector', 'prompt'\]"):
    first_update(OptimizerOptions(learning_rate=rates))


def test_weight_decay_pulls_on_matrices_that_are_no_prompts():
  assert decay_mask(tree()) == {
    "connector": {"kernel": True, "bias": False, "norm": {"scale": False}},
    "prompt": {"vectors": False},
  }
  zeros = jax.tree.map(jnp.zeros_like, tree())
  updates = first_update(OptimizerOptions(learning_rate=0.1, weight_decay=0.5), zeros)
  np.testing.assert_allclose(updates["connector"]["kernel"], -0.05, rtol=1e-6)
  assert not any(
    np.any(leaf) for leaf in jax.tree.leaves((updates["prompt"], updates["connector"]["norm"]))
  )


def test_stacked_biases_and_scales_and_nested_prompts_are_not_decayed():
  layers = {"layers": {"norm": {"scale": jnp.ones((2, 3))}, "up": {"bias": jnp.ones((2, 3))}}}
  prompts = {"connector": {"prompt_one": jnp.ones((2, 3)), "query": jnp.ones((2, 3))}}
  assert not any(jax.tree.leaves(decay_mask(layers)))
  assert decay_mask(prompts) == {"connector": {"prompt_one": False, "query": True}}


def test_clipping_bounds_the_gradient_that_adam_sees():
  grads = {"a": jnp.full((4,), 50.0)}  # norm 100
  moments = []
  for limit in (1.0, None):
    optimizer = make_optimizer(OptimizerOptions(clip_norm=limit, beta1=0.0), 10)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    moments.append(float(state[1].mu["a"][0]))
  assert moments == pytest.approx([0.5, 50.0])


@pytest.mark.parametrize(
  "change, message",
  [
    ({"learning_rate": -1.0}, "learning rate -1.0"),
    ({"learning_rate": math.nan}, "learning rate nan"),
    ({"learning_rate": {"prompt": math.inf}}, "learning rate inf"),
    ({"warmup_steps": 11}, "11 warm-up steps do not fit into 10 steps"),
    ({"final_fraction": 1.5}, "final_fraction 1.5"),
  ],
)
def test_options_that_make_no_sense(change, message):
  with pytest.raises(UserError, match=message):
    make_optimizer(OptimizerOptions(**change), 10)
