"""Values of the command line: each takes the kind that the config has for it, or is refused."""

import pytest
from ml_collections import ConfigDict

from frozen_jax.config.overrides import nearest_key, override, own_values_of_stages
from frozen_jax.core.errors import UserError
from frozen_jax.run.defaults import defaults
from frozen_jax.run.settings import resolve_run, with_defaults


@pytest.fixture
def config():
  values = defaults()
  values.stage_order = ("first", "second")
  values.stages.first = ConfigDict({"method": "prompt_tuning"})
  values.stages.second = ConfigDict({"method": "prompt_tuning", "train": {"steps": 7}})
  return with_defaults(values)


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("train.steps", "5", 5),
    ("train.steps", "-1", -1),
    ("train.learning_rate.prompt", "1", 1.0),
    ("train.learning_rate.prompt", "3e-4", 3e-4),
    ("tensorboard", "true", True),
    ("tensorboard", "False", False),
    ("model.name", "7", "7"),
    ("data.template", "Q: {question} A:", "Q: {question} A:"),
    ("data.lengths", "32,64", [32, 64]),
    ("data.lengths", "(128,)", [128]),
    ("data.lengths", "[16, 32]", [16, 32]),
    ("data.lengths", "64", [64]),
    ("stage_order", "first", ["first"]),
    ("stage_order", "second,first", ["second", "first"]),
    ("stage_order", "('second', 'first')", ["second", "first"]),
    ("data.fields", "question=query, answers=a.text", ["question=query", "answers=a.text"]),
    ("stage_order", "()", []),
    ("stage_order", "", []),
  ],
)
def test_a_value_takes_the_kind_of_the_one_that_it_replaces(config, key, text, value):
  override(config, [(key, text)])
  found = config
  for name in key.split("."):
    found = found[name]
  assert found == value and type(found) is type(value)


def test_a_list_given_several_times_is_joined_and_anything_else_replaced(config):
  given = [("data.fields", "a=b"), ("seed", "1"), ("data.fields", "c=d"), ("seed", "2")]
  override(config, given)
  assert config.data.fields == ["a=b", "c=d"]
  assert config.seed == 2


def test_a_stage_takes_what_the_run_has(config):
  given = [
    ("stages.first.train.batch_size", "4"),
    ("stages.first.init_from", "prompt=second/prompt"),
    ("stages.second.train.steps", "19"),
    ("train.batch_size", "16"),
  ]
  override(config, given)
  first, second = resolve_run(config).stages
  assert (first.train.batch_size, second.train.batch_size) == (4, 16)
  assert first.init_from == {"prompt": "second/prompt"}
  assert (first.train.steps, second.train.steps) == (100, 19)


@pytest.mark.parametrize(
  "key, text, message",
  [
    ("nonsense", "1", r"unknown config key config.nonsense; config has .*train"),
    ("train.nonsense", "1", r"unknown config key config.train.nonsense.*config.train has .*steps"),
    ("train.step", "1", r"did you mean config.train.steps\?"),
    ("train.steps.more", "1", r"unknown config key config.train.steps.more"),
    ("train", "1", r"is a section; give a key of it, such as --config.train"),
    ("stages.third.train.steps", "1", r"unknown config key config.stages.third"),
    ("stages.first.train.step", "1", r"unknown config key config.stages.first.train.step"),
    ("stages.first.stage_order", "a", r"unknown config key config.stages.first.stage_order"),
    ("train.steps", "many", r"config.train.steps is 'many', but it takes a whole number"),
    ("train.steps", "1.5", r"config.train.steps is '1.5', but it takes a whole number"),
    ("train.learning_rate.prompt", "fast", r"takes a number"),
    ("tensorboard", "perhaps", r"takes true or false"),
    ("data.lengths", "32,long", r"a part of config.data.lengths is 'long'"),
  ],
)
def test_anything_else_is_the_users_error(config, key, text, message):
  with pytest.raises(UserError, match=message):
    override(config, [(key, text)])


@pytest.mark.parametrize(
  "text, seeds", [("0,1,2", (0, 1, 2)), ("(5, -7)", (5, -7)), ("[3,1]", (3, 1)), ("", ())]
)
def test_seeds_are_numbers(config, text, seeds):
  override(config, [("seeds", text), ("train.warmup_steps", "1")])
  run = resolve_run(config)
  assert run.seeds == seeds and run.values["seeds"] == list(seeds)


def test_one_seed_replaces_those_of_the_config(config):
  override(config, [("seeds", "0,1"), ("train.warmup_steps", "1")])
  override(config, [("seed", "5")])
  assert (resolve_run(config).seed, resolve_run(config).seeds) == (5, ())


@pytest.mark.parametrize("first", ["seed", "seeds"])
def test_one_seed_and_several_are_not_given_together(config, first):
  values = {"seed": "3", "seeds": "0,1"}
  given = sorted(values.items(), key=lambda one: one[0] != first)
  with pytest.raises(UserError, match="config.seed and config.seeds are both given; give one"):
    override(config, given)


def test_a_stage_with_a_seed_of_its_own_keeps_it_with_several_seeds(config):
  given = [("seeds", "0,1")]
  override(config, [("stages.second.seed", "0"), *given])
  assert own_values_of_stages(config, given) == {"second": {"seed": 0}}


@pytest.mark.parametrize(
  "key, near",
  [
    ("train.step", "train.steps"),  # of the same section
    ("evaluate.beams", "evaluate.num_beams"),
    ("steps", "train.steps"),  # of the same name, in another section
    ("evaluate.steps", "train.steps"),
    ("lengths", "data.lengths"),
    ("modle.dtype", "model.dtype"),
    ("trian.batch_sise", "train.batch_size"),  # spelt alike as a whole
    ("stages.first.train.step", "stages.first.train.steps"),  # of the same stage
    ("stages.second.train.step", "stages.second.train.steps"),
    ("stages.first.steps", "stages.first.train.steps"),
    ("stages.frist.train.steps", "stages.first.train.steps"),
    ("stages.secnd.data.length", "stages.second.data.lengths"),
    ("stages.first.init_form", "stages.first.init_from"),
    ("second.train.steps", "stages.second.train.steps"),
    ("method", "stages.first.method"),
    ("zzz.qqq", ""),
    ("stages.zzz.train.steps", ""),
  ],
)
def test_the_nearest_key_is_of_the_right_place(config, key, near):
  assert nearest_key(config, key) == near


def test_an_unknown_stage_is_answered_with_those_that_there_are(config):
  with pytest.raises(UserError, match="did you mean config.stages.first.seed.*has first, second$"):
    override(config, [("stages.fist.seed", "1")])


def test_a_stage_with_a_value_of_its_own_keeps_it(config):
  given = [("train.steps", "9"), ("train.batch_size", "4")]
  override(config, given)
  assert own_values_of_stages(config, given) == {"second": {"train.steps": 7}}
  both = [*given, ("stages.second.train.steps", "9")]
  override(config, both)
  assert own_values_of_stages(config, both) == {}
  config.stage_order = ("first",)
  assert own_values_of_stages(config, given) == {}
