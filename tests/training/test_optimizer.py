"""The optimizer: its schedule, rates by part, what is decayed, and clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.training.optimizer import decay_mask, learning_rates, make_optimizer
from frozen_jax.training.settings import TrainSettings


def settings(**changes):
  return TrainSettings(**{"steps": 10, "warmup_steps": 0, "weight_decay": 0.0, **changes})


def tree():
  return {
    "connector": {
      "kernel": jnp.ones((3, 3)),
      "bias": jnp.ones((3,)),
      "norm": {"scale": jnp.ones(3)},
    },
    "prompt": {"vectors": jnp.ones((2, 3))},
  }


def first_update(learning_rate, grads=None, no_decay=(), **changes):
  optimizer = make_optimizer(settings(**changes), learning_rate, no_decay)
  grads = jax.tree.map(jnp.ones_like, tree()) if grads is None else grads
  return optimizer.update(grads, optimizer.init(tree()), tree())[0]


def test_the_schedule():
  rate = make_optimizer(settings(steps=20, warmup_steps=4, final_fraction=0.2), 0.1).rate
  rates = [float(rate(step)["learning_rate"]) for step in (1, 2, 3, 4, 12, 20, 25)]
  halfway = 0.1 * (0.2 + 0.8 * 0.5)
  np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, halfway, 0.02, 0.02], rtol=1e-6)


def test_without_warm_up_the_first_update_has_the_peak():
  rate = make_optimizer(settings(steps=11, final_fraction=0.0), 0.1).rate
  assert float(rate(1)["learning_rate"]) == pytest.approx(0.1)
  assert float(rate(6)["learning_rate"]) == pytest.approx(0.05)
  assert float(rate(11)["learning_rate"]) == pytest.approx(0, abs=1e-8)


def test_a_final_fraction_of_one_keeps_the_rate():
  rate = make_optimizer(settings(final_fraction=1.0), 0.1).rate
  assert {float(rate(step)["learning_rate"]) for step in range(1, 11)} == {float(np.float32(0.1))}


def test_the_updates_follow_the_schedule_that_is_logged():
  """Adam moves each leaf by the rate when the gradient is constant (bias-corrected moments: 1)."""
  optimizer = make_optimizer(settings(steps=8, warmup_steps=3, clip_norm=0.0), 0.1, epsilon=0.0)
  trained = {"a": jnp.zeros(())}
  state = optimizer.init(trained)
  for step in range(1, 9):
    updates, state = optimizer.update({"a": jnp.ones(())}, state, trained)
    expected = -float(optimizer.rate(step)["learning_rate"])
    assert float(updates["a"]) == pytest.approx(expected, rel=1e-4), step


def test_rates_of_parts_really_differ():
  rates = {"connector": 0.1, "prompt": 0.5}
  updates = first_update(rates)
  np.testing.assert_allclose(updates["connector"]["kernel"], -0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["connector"]["norm"]["scale"], -0.1, rtol=1e-4)
  np.testing.assert_allclose(updates["prompt"]["vectors"], -0.5, rtol=1e-4)
  named = make_optimizer(settings(warmup_steps=2), rates).rate(1)
  assert {name: round(float(rate), 6) for name, rate in named.items()} == {
    "learning_rate/connector": 0.05,
    "learning_rate/prompt": 0.25,
  }


@pytest.mark.parametrize(
  "rates", [{"connector": 0.1}, {"connector": 0.1, "prompt": 0.1, "other": 0.1}, {}]
)
def test_rates_that_miss_or_exceed_what_is_trained(rates):
  with pytest.raises(UserError, match=r"what is trained is \['connector', 'prompt'\]"):
    first_update(rates)


def test_rates_of_the_settings_replace_a_methods_own():
  defaults = {"prompt": 0.02, "connector": 3e-4}
  assert learning_rates(settings(), defaults, tree()) == {"connector": 3e-4, "prompt": 0.02}
  train = settings(learning_rate={"prompt": 0.05, "lora": 1e-3})  # lora: of another stage
  assert learning_rates(train, defaults, tree()) == {"connector": 3e-4, "prompt": 0.05}
  with pytest.raises(UserError, match=r"connector is trained .* set train.learning_rate.connector"):
    learning_rates(train, {}, tree())


def test_weight_decay_applies_to_matrices_that_the_method_does_not_exclude():
  assert decay_mask(tree(), ("prompt/.*",)) == {
    "connector": {"kernel": True, "bias": False, "norm": {"scale": False}},
    "prompt": {"vectors": False},
  }
  zeros = jax.tree.map(jnp.zeros_like, tree())
  updates = first_update(0.1, zeros, ("prompt/.*",), weight_decay=0.5)
  np.testing.assert_allclose(updates["connector"]["kernel"], -0.05, rtol=1e-6)
  assert not any(
    np.any(leaf) for leaf in jax.tree.leaves((updates["prompt"], updates["connector"]["norm"]))
  )
  assert np.all(first_update(0.1, zeros, weight_decay=0.5)["prompt"]["vectors"] < 0)


def test_stacked_biases_and_scales_are_never_decayed():
  layers = {"layers": {"norm": {"scale": jnp.ones((2, 3))}, "up": {"bias": jnp.ones((2, 3))}}}
  assert not any(jax.tree.leaves(decay_mask(layers)))


@pytest.mark.parametrize(
  "no_decay, decayed",
  [
    ((), {"prompt_one": True, "query": True}),
    (("connector/prompt.*",), {"prompt_one": False, "query": True}),
    (("connector/query", ".*one"), {"prompt_one": False, "query": False}),
    (("query", "prompt"), {"prompt_one": True, "query": True}),
  ],
)
def test_paths_that_are_not_decayed(no_decay, decayed):
  prompts = {"connector": {"prompt_one": jnp.ones((2, 3)), "query": jnp.ones((2, 3))}}
  assert decay_mask(prompts, no_decay) == {"connector": decayed}


def test_clipping_bounds_the_gradient_that_adam_sees():
  grads = {"a": jnp.full((4,), 50.0)}  # norm 100
  moments = []
  for limit in (1.0, 0.0):
    optimizer = make_optimizer(settings(clip_norm=limit), 1e-3, beta1=0.0)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    moments.append(float(state[1].mu["a"][0]))
  assert moments == pytest.approx([0.5, 50.0])


@pytest.mark.parametrize(
  "learning_rate, changes, message",
  [
    (-1.0, {}, "the rate of all is -1.0; a learning rate is a number of 0 or more"),
    (math.nan, {}, "the rate of all is nan"),
    ({"prompt": math.inf}, {}, "the rate of prompt is inf"),
    (0.1, {"warmup_steps": 11}, "11 warm-up steps do not fit into 10 steps; lower train.warmup"),
  ],
)
def test_what_makes_no_sense(learning_rate, changes, message):
  with pytest.raises(UserError, match=message):
    make_optimizer(settings(**changes), learning_rate)
