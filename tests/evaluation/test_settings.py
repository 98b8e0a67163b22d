"""The `evaluate` section."""

import pytest

from frozen_jax.config.section import resolve
from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.settings import EvaluateSettings


def test_defaults():
  settings = EvaluateSettings()
  assert (settings.max_new_tokens, settings.num_beams, settings.batch_size) == (16, 1, 64)
  assert (settings.max_examples, settings.normalisation) == (500, "sum")
  assert (settings.general_text, settings.skills) == ("", ())


@pytest.mark.parametrize("name", ["max_examples", "max_new_tokens", "num_beams", "batch_size"])
def test_numbers_below_one(name):
  with pytest.raises(UserError, match=f"evaluate.{name} is 0; it must be at least 1"):
    EvaluateSettings(**{name: 0})


def test_an_unknown_normalisation():
  for make in (EvaluateSettings, lambda **values: resolve(EvaluateSettings, values, "evaluate")):
    with pytest.raises(UserError, match="config.evaluate.normalisation is 'mean'; it is one of su"):
      make(normalisation="mean")
