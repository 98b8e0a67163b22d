"""What every entry of METHODS has in common; see `core.types.Method`."""

import dataclasses
import re

import jax
import pytest

from frozen_jax.config.section import resolve
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods import METHODS
from tests.methods.tiny import base

# Sections of a method that, together with the defaults, give all keys its trained trees may have.
VARIANTS = {
  "neural_recursion": [
    {"recursion": {"first_prompt": "trained"}},
    {"recursion": {"first_prompt": "none", "last_prompt": "none"}},
    {"recursion": {"read": "2", "write": "0.3", "connector": {"kind": "tokens"}}},
    {"recursion": {"passes": 1, "write": "1", "connector": {"kind": "none"}}},
  ],
  "id_pt": [{"generator": {"constant": False, "p_prime_length": 0}}, {"prompt": {"layer": "0.3"}}],
  "recirculation": [{"recirculation": {"form": "serial", "read": "final"}}],
  "prompt_tuning": [{"prompt": {"per_task": True}}, {"prompt": {"layer": "2"}}],
}


def build(name, values=None, **how):
  method, values = METHODS[name], values or {}
  sections = {key: resolve(kind, values.get(key, {}), key) for key, kind in method.sections.items()}
  return method.build(base(), sections, datasets=("squad", "cosmos"), **how)


def trained(method):
  return jax.eval_shape(lambda key: method.init(base(), key), jax.random.key(0))


@pytest.fixture(params=METHODS)
def name(request):
  return request.param


def test_names_are_those_of_the_classes(name):
  assert METHODS[name].name == name


def test_methods_are_hashable_values_without_arrays(name):
  for values in [{}, *VARIANTS.get(name, [])]:
    one, other = build(name, values), build(name, values)
    assert one == other and hash(one) == hash(other) and one != build(name, values, remat="full")
    for field in dataclasses.fields(one):
      leaves = jax.tree.leaves(getattr(one, field.name))
      assert not any(hasattr(leaf, "shape") for leaf in leaves), field.name


def test_the_start_of_a_prompt_makes_no_other_method(name):
  other = {"prompt": {"text": "another", "length": 3}}
  if "prompt" in METHODS[name].sections and name != "id_pt":  # its generator has a length
    assert build(name) == build(name, other)


def test_learning_rates_are_those_of_the_trained_trees(name):
  trees = [trained(build(name, values)) for values in [{}, *VARIANTS.get(name, [])]]
  assert set().union(*trees) == set(METHODS[name].learning_rates)


def test_every_pattern_of_no_decay_matches_a_path(name):
  trees = [trained(build(name, values)) for values in [{}, *VARIANTS.get(name, [])]]
  leaves = {path for tree in trees for path in paths.flatten(tree)}
  for pattern in METHODS[name].no_decay:
    assert any(re.fullmatch(pattern, path) for path in leaves), pattern


def test_no_decay_covers_vectors_that_stand_for_text():
  """Prompts and prefixes have no reason to be near zero; a method may name more of them."""
  for name in METHODS:
    for path in paths.flatten(trained(build(name))):
      is_prompt = path.split("/")[0].endswith(("prompt", "prefix"))
      matched = any(re.fullmatch(pattern, path) for pattern in METHODS[name].no_decay)
      assert matched or not is_prompt, path


def test_a_start_without_text_depends_on_the_key():
  method = build("prompt_tuning", {"prompt": {"text": ""}})
  start = lambda seed: method.init(base(), jax.random.key(seed))["prompt"]["vectors"]
  assert (start(1) == start(1)).all() and (start(1) != start(2)).any()


@pytest.mark.parametrize(
  "name, values, message",
  [
    ("prompt_tuning", {"prompt": {"length": 0}}, "prompt.length is 0"),
    ("prefix_tuning", {"prompt": {"length": -1}}, "prompt.length is -1"),
    ("textual_recursion", {"prompt": {"per_task": True}}, "one prompt a pass"),
    ("adapters", {"adapters": {"bottleneck": 0}}, "adapters.bottleneck is 0"),
    ("lora", {"lora": {"rank": 0}}, "lora.rank is 0"),
    ("lora", {"lora": {"targets": ("attn/x",)}}, "lora.targets names attn/x; this model has attn"),
    ("lora", {"lora": {"targets": ()}}, "lora.targets is empty"),
    ("neural_recursion", {"recursion": {"passes": 0}}, "recursion.passes is 0"),
    ("neural_recursion", {"recursion": {"connector": {"width": 9}}}, "connector.width is 9"),
  ],
)
def test_settings_that_make_no_sense(name, values, message):
  with pytest.raises(UserError, match=message):
    build(name, values)


def test_a_text_needs_a_tokenizer():
  with pytest.raises(UserError, match="needs a tokenizer"):
    build("prompt_tuning").init(base(tokenizer=None), jax.random.key(0))


@pytest.mark.parametrize(
  "name", [name for name, kind in METHODS.items() if hasattr(kind, "first_pass")]
)
def test_a_first_pass_without_a_prompt_is_the_lm(name):
  """A stage may have no frozen inputs (`stages.NAME.frozen_inputs=()`)."""
  method = build(name)
  first, tree = method.first_pass(trained(method), {"lm": {}, "frozen_inputs": {}})
  assert (first.name, tree) == ("zero_shot", {})
