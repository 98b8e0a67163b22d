"""Other values for the fields of settings, and a small prompt-tuning run to try them on."""

import dataclasses
import typing
from collections.abc import Mapping

from frozen_jax.config.section import allowed

QUESTIONS = [
  {"question": f"What is the capital of {country}?", "answers": [city]}
  for country, city in (("Peru", "Lima"), ("Chile", "Santiago"), ("Kenya", "Nairobi"))
]


def prompt_tuning_config(model, train, validation):
  """A config of three steps of prompt tuning, as nested dicts; what it leaves out has defaults."""
  return {
    "stage_order": ["prompt"],
    "stages": {"prompt": {"method": "prompt_tuning"}},
    "model": {"name": str(model)},
    "data": {
      "train": str(train),
      "validation": str(validation),
      "test": str(validation),
      "lengths": [64],
    },
    "prompt": {"length": 4},
    "mesh": {"data": 1},
    "train": {
      "steps": 3,
      "batch_size": 4,
      "validate_every": 2,
      "checkpoint_every": 2,
      "warmup_steps": 1,
    },
  }


def with_value(config, key, value):
  """A copy of nested dicts with the value of a dotted key replaced."""
  name, _, rest = key.partition(".")
  return {**config, name: with_value(config.get(name, {}), rest, value) if rest else value}


def fields_of(section, name):
  """(dotted key, field, value) of every field of a section and of those within it."""
  for field in dataclasses.fields(section):
    value, key = getattr(section, field.name), f"{name}.{field.name}"
    if dataclasses.is_dataclass(value):
      yield from fields_of(value, key)
    else:
      yield key, field, value


def values_to_try(field, value):
  """Values of the field's type that are not this one, the likeliest to be allowed first."""
  if choices := allowed(field).choices:
    return [choice for choice in choices if choice != value]
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, int):
    return [one for one in (value + 1, 2 * value, value + 2) if one != value]
  if isinstance(value, float):
    return [one for one in (value + 0.125, value / 2, value + 1.5) if one != value]
  if isinstance(value, str):
    return [f"{value} other", "a {question}", "0.5"]
  if isinstance(value, Mapping):
    return [{part: 2 * rate for part, rate in value.items()} or {"width": 8}]
  assert isinstance(value, tuple), field
  part = value[-1] if value else (typing.get_args(field.type) or (str,))[0]()
  return [[*value, one] for one in ([f"{part}x", "a=b"] if isinstance(part, str) else [2 * part])]
