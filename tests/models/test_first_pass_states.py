"""A recursive LM trained on the states of its first pass that are kept is the one without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.recursion_settings import RecursionSettings
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.text_states import text_states
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.modules.settings import PromptSettings
from tests.methods.tiny import CONFIG, PARAMS, base, recursion

PROMPT = {"vectors": 0.1 * jax.random.normal(jax.random.key(5), (5, CONFIG.width))}
VARIANTS = {
  "frozen prompt": {},
  "no prompt": {"first_prompt": "none"},
  "three passes": {"passes": 3},
  "plain": {"input_skip": False, "last_prompt": "none"},
  "within the stack": {"read": 2, "write": 1},
  "within the stack, no prompt": {"read": 2, "write": 1, "first_prompt": "none"},
  "one pass": {"write": 1, "passes": 1},
  "written within the stack": {"write": 1, "passes": 3},
}


def tuned(prompt=PROMPT, params=PARAMS, fingerprint="f" * 64, **options):
  method = recursion(caches_first_pass=True, **options)
  lm = FrozenLM("tiny", CONFIG, params, None, fingerprint)
  given = {} if method.first_prompt == "none" else {"first_prompt": prompt}
  return TunedModel(lm, method, method.init(base(params=params), jax.random.key(1)), given)


def batch(lengths=(7, 12, 3), width=12):
  draw = np.random.default_rng(3)
  tokens = np.zeros((len(lengths), width), np.int64)
  for row, length in zip(tokens, lengths, strict=True):
    row[:length] = draw.integers(1, CONFIG.vocab_size, length)
  mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
  positions = np.stack([np.array(lengths) - 2, np.array(lengths) - 1], -1)
  return {
    "tokens": (tokens * mask).astype(np.int32),
    "mask": mask,
    "target_positions": positions.astype(np.int32),
    "target_ids": np.full(positions.shape, 4, np.int32),
    "target_mask": np.ones(positions.shape, np.int32),
  }


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))


def loss_and_gradients(model, one):
  key = jax.random.key(7)
  loss = lambda trained: model.method.loss(trained, model.frozen, one, key)[0]
  return jax.jit(jax.value_and_grad(loss))(model.trained)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_pass_itself(variant):
  model, one = tuned(**VARIANTS[variant]), batch()
  with_states = text_states(model)(one)
  assert set(with_states) == {*one, "first_pass_states", "first_pass_cached"}
  layers = model.method.layers
  kept = (layers.write > 0) + (layers.passes > 1)  # what is shared, and what pass one hands on
  assert with_states["first_pass_states"].shape == (*one["tokens"].shape, kept * CONFIG.width)
  loss, gradients = loss_and_gradients(model, one)
  kept_loss, kept_gradients = loss_and_gradients(model, with_states)
  np.testing.assert_allclose(kept_loss, loss, rtol=1e-5)
  expected = paths.flatten(gradients)
  for path, gradient in paths.flatten(kept_gradients).items():
    np.testing.assert_allclose(gradient, expected[path], atol=1e-5, err_msg=path)
  assert any(float(jnp.abs(g).max()) > 1e-3 for g in expected.values())


def test_a_step_is_cheaper_by_the_first_pass():
  model, one = tuned(), batch()
  kept = text_states(model)(one)
  flops = lambda f, *args: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
  loss = lambda trained, one: model.method.loss(trained, model.frozen, one, None)[0]
  step, kept_step = (flops(jax.grad(loss), model.trained, batch) for batch in (one, kept))
  first_pass = flops(model.method.first_pass_states, model.frozen, one["tokens"], one["mask"])
  assert step - kept_step == pytest.approx(first_pass, rel=0.1)


def test_a_text_is_read_once_in_whatever_batch_it_comes():
  states = text_states(tuned())
  first = states(batch())
  assert (states.hits, states.misses) == (0, 3)
  again = states(batch(lengths=(7, 12, 3), width=12))
  np.testing.assert_array_equal(again["first_pass_states"], first["first_pass_states"])
  assert list(again["first_pass_cached"]) == [1, 1, 1] and states.misses == 3
  states.flush()
  another_process = text_states(tuned())
  another_process(batch())
  assert (another_process.hits, another_process.misses) == (3, 0)


def test_states_do_not_depend_on_the_width_of_a_batch():
  """Of a text in a row of 9 positions, of 12 and of 21: bit by bit."""
  found = [
    text_states(tuned())(batch(lengths=lengths, width=width))["first_pass_states"][0, :9]
    for lengths, width in (((9,), 9), ((9, 12), 12), ((9, 21), 21))
  ]
  for one in found[1:]:
    np.testing.assert_array_equal(one, found[0])


def test_one_pass_at_the_embeddings_has_none_to_keep():
  recursion = RecursionSettings(passes=1, cache_first_pass=True)
  sections = {"prompt": PromptSettings(), "recursion": recursion}
  assert not NeuralRecursion.build(base(), sections).caches_first_pass
  late = dataclasses.replace(recursion, write="1")
  assert NeuralRecursion.build(base(), sections | {"recursion": late}).caches_first_pass


OTHERS = {
  "another prompt": {"prompt": {"vectors": PROMPT["vectors"] + 1}},
  "no prompt": {"first_prompt": "none"},
  "other weights": {"fingerprint": "e" * 64},
  "another dtype": {"params": jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_states_of_another_first_pass_are_not_taken(other):
  states = text_states(tuned())
  states(batch())
  states.flush()
  others = text_states(tuned(**OTHERS[other]))
  others(batch())
  assert others.hits == 0


def test_a_method_that_keeps_none_has_none():
  model = tuned()
  method = dataclasses.replace(model.method, caches_first_pass=False)
  assert text_states(dataclasses.replace(model, method=method)) is None


def test_a_trained_first_prompt_is_refused():
  with pytest.raises(UserError, match="recursion.first_prompt to frozen or none"):
    RecursionSettings(first_prompt="trained", cache_first_pass=True)
