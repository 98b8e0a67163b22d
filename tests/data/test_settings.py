"""The settings of data: their defaults, what is refused, and that they import no jax."""

import subprocess
import sys

import pytest

from frozen_jax.config.section import resolve, section_values
from frozen_jax.core.errors import UserError
from frozen_jax.data.settings import DataSettings, InputSettings, MixtureSettings


def test_the_mixture_of_a_data_section():
  settings = resolve(
    DataSettings, {"sampling": "temperature", "cap": 5, "lengths": [8, 16]}, "data"
  )
  assert settings.mixture == MixtureSettings("temperature", 2.0, 5)
  assert settings.lengths == (8, 16) and settings.train == "world_facts/train"
  assert set(section_values(settings)) == {
    *("train", "validation", "test", "fields", "templates", "sampling", "temperature", "cap"),
    *("held_out", "template", "lengths", "encoder_length", "datasets", "timeout"),
  }


@pytest.mark.parametrize("lengths", [(), (64, 32), (32, 32)])
@pytest.mark.parametrize("kind", [InputSettings, DataSettings])
def test_lengths_must_rise(kind, lengths):
  with pytest.raises(UserError, match="data.lengths is .*; give rising numbers of at least 2"):
    kind(lengths=lengths)


def test_the_mixture_is_checked_with_its_section():
  with pytest.raises(UserError, match="data.sampling is 'equal'; it is one of '', proportional"):
    resolve(DataSettings, {"sampling": "equal"}, "data")
  with pytest.raises(UserError, match="data.temperature is 0.0"):
    DataSettings(temperature=0.0)


@pytest.mark.parametrize("module", ["settings", "builtin"])
def test_no_jax_is_imported(module):
  program = f"import sys, frozen_jax.data.{module}; print(*sys.modules)"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert {"jax", "flax", "tensorflow_datasets"}.isdisjoint(done.stdout.split())
