"""A verb compiles as its config asks, and what comes after it as before."""

import jax
import pytest

from frozen_jax import run
from frozen_jax.core.errors import UserError
from frozen_jax.run.settings import compiled_as_asked
from tests.run.settings_cases import prompt_tuning_config

FLAG = "jax_disable_most_optimizations"


@compiled_as_asked
def verb(config, folder):
  """Whether XLA optimises little while it runs."""
  return jax.config.read(FLAG)


@pytest.mark.parametrize("asked", [True, False])
def test_it_is_as_the_config_asks(asked):
  config = prompt_tuning_config("model", "train.jsonl", "validation.jsonl")
  assert verb(config | {"disable_most_optimizations": asked}, "workdir") is asked
  assert verb(config, "workdir") is False  # the default


@pytest.mark.parametrize("name", run.__all__)
def test_every_verb_does_so_and_leaves_nothing_behind(name, tmp_path):
  """A model that there is not ends each of them, after the config was read."""
  config = prompt_tuning_config(tmp_path / "none", "train.jsonl", "validation.jsonl")
  assert getattr(run, name).__wrapped__.__name__ == name
  with pytest.raises(UserError):
    getattr(run, name)(config | {"disable_most_optimizations": True}, tmp_path / "run")
  assert not jax.config.read(FLAG)
