"""Values of the command line: each takes the kind that the config has for it, or is refused."""

import pytest
from ml_collections import ConfigDict

from frozen_jax.core.errors import UserError
from frozen_jax.run.defaults import defaults
from frozen_jax.run.options import resolve, stage_options
from frozen_jax.run.overrides import override


@pytest.fixture
def config():
  made = defaults()
  made.order = ("first", "second")
  made.stages.first = ConfigDict({"method": "prompt_tuning"})
  made.stages.second = ConfigDict({"method": "prompt_tuning", "train": {"steps": 7}})
  return made.lock()


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
    ("data.lengths", "32,64", (32, 64)),
    ("data.lengths", "(128,)", (128,)),
    ("data.lengths", "[16, 32]", (16, 32)),
    ("data.lengths", "64", (64,)),
    ("order", "first", ("first",)),
    ("order", "second,first", ("second", "first")),
    ("order", "('second', 'first')", ("second", "first")),
    ("data.fields", "question=query, answers=a.text", ("question=query", "answers=a.text")),
    ("order", "()", ()),
    ("order", "", ()),
  ],
)
def test_a_value_takes_the_kind_that_stands(config, key, text, value):
  override(config, [(key, text)])
  found = config
  for name in key.split("."):
    found = found[name]
  assert found == value and type(found) is type(value)


def test_a_list_given_several_times_is_joined_and_anything_else_replaced(config):
  given = [("data.fields", "a=b"), ("seed", "1"), ("data.fields", "c=d"), ("seed", "2")]
  override(config, given)
  assert config.data.fields == ("a=b", "c=d")
  assert config.seed == 2


def test_a_stage_takes_what_the_run_has(config):
  given = [
    ("stages.first.train.batch_size", "4"),
    ("stages.first.starts", "prompt=second/prompt"),
    ("stages.second.train.steps", "9"),
    ("train.batch_size", "16"),
  ]
  override(config, given)
  options = resolve(config)
  first, second = (stage_options(options, name) for name in ("first", "second"))
  assert (first["train"]["batch_size"], second["train"]["batch_size"]) == (4, 16)
  assert first["starts"] == ["prompt=second/prompt"]
  assert (first["train"]["steps"], second["train"]["steps"]) == (100, 9)


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
    ("stages.first.order", "a", r"unknown config key config.stages.first.order"),
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
