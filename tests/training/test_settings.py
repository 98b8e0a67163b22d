"""The `train` section: its defaults, what it refuses, and what a checkpoint depends on."""

import dataclasses
import math
from typing import ClassVar

import pytest

from frozen_jax.config.section import identity, resolve
from frozen_jax.core.errors import UserError
from frozen_jax.training.settings import TrainSettings


@pytest.mark.parametrize(
  "change, message",
  [
    ({"steps": -1}, "train.steps is -1; it must be at least 0"),
    ({"steps": 0, "epochs": -0.5}, "train.epochs is -0.5; it must be at least 0"),
    ({"steps": 3, "epochs": 2.0}, "train.steps is 3 and train.epochs 2: each says"),
    ({"batch_size": 0}, "train.batch_size is 0; it must be at least 1"),
    ({"accumulate": 0}, "train.accumulate is 0; it must be at least 1"),
    ({"log_every": 0}, "train.log_every is 0; it must be at least 1"),
    ({"validate_every": 0}, "train.validate_every is 0; it must be at least 1"),
    ({"checkpoint_every": 0}, "train.checkpoint_every is 0; it must be at least 1"),
    ({"patience": -1}, "train.patience is -1; it must be at least 0"),
    ({"accumulate": 5}, "train.batch_size 32 is not divisible by train.accumulate 5; choose a"),
    (
      {"learning_rate": {"prompt": -1.0}},
      "learning_rate.prompt is -1.0; it must be at least 0",
    ),
    ({"learning_rate": {"lm": math.nan}}, "train.learning_rate.lm is nan"),
    ({"learning_rate": {"lm": "fast"}}, "train.learning_rate.lm is 'fast'"),
    ({"final_fraction": 1.5}, "final_fraction is 1.5; it must be at least 0 and at most 1"),
  ],
)
def test_what_makes_no_sense(change, message):
  with pytest.raises(UserError, match=message):
    TrainSettings(**change)


def test_a_subclass_names_its_own_section():
  @dataclasses.dataclass(frozen=True)
  class Other(TrainSettings):
    section: ClassVar[str] = "reader.re_ranker"

  with pytest.raises(UserError, match=r"^config.reader.re_ranker.steps is -1"):
    Other(steps=-1)
  assert Other(steps=3).warmup_steps == 10


def test_from_the_values_of_a_config():
  settings = resolve(TrainSettings, {"learning_rate": {"prompt": 0.05}, "steps": 3}, "train")
  assert settings == TrainSettings(steps=3, learning_rate={"prompt": 0.05})
  with pytest.raises(UserError, match="config.train.step; did you mean config.train.steps"):
    resolve(TrainSettings, {"step": 3}, "train")


def test_what_is_trained_does_not_depend_on_logging_and_saving():
  values = identity(TrainSettings())
  assert not {"log_every", "checkpoint_every"} & values.keys()
  assert {"steps", "validate_every", "validate_examples", "learning_rate"} <= values.keys()
