"""A section with one of its fields changed, for each field; and what artifacts make of it."""

import dataclasses
import json
import typing
from collections.abc import Mapping

from frozen_jax.config.dependencies import changed
from frozen_jax.config.section import allowed
from frozen_jax.pipelines.artifacts import Artifacts

TOGETHER = {"epochs": {"steps": 0}}  # fields that change with another one, by its name


def perturbed(section, special):
  """(dotted name, the section with another value there) of every field that affects a result.

  special: other values by dotted name, where not any value of its type is allowed.
  """
  return list(_variants(section, special, "", True))


def unaffecting(section):
  """The dotted names of the fields that do not affect a result."""
  return {name for name, _ in _variants(section, {}, "", False)}


def _variants(section, special, path, affects):
  types = typing.get_type_hints(type(section))
  for field in dataclasses.fields(section):
    name, value = f"{path}{field.name}", getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      for inner, other in _variants(value, special, f"{name}.", affects):
        yield inner, dataclasses.replace(section, **{field.name: other})
    elif field.metadata["affects_result"] == affects:
      choices = allowed(field).choices
      other = special.get(name, _another(value, choices, types[field.name]) if affects else value)
      assert other != value or not affects
      yield name, dataclasses.replace(section, **{field.name: other}, **TOGETHER.get(name, {}))


def _another(value, choices, kind):
  if choices:
    return next(choice for choice in choices if choice != value)
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 1
  if isinstance(value, float):
    return value / 2 + 0.25
  if isinstance(value, Mapping):
    return {key: 2 * one for key, one in value.items()}
  if isinstance(value, tuple):
    return value[:-1] or (*value, *value)
  assert kind is str, kind
  return f"{value}!"


class Recorded:
  """Compares the dependencies of artifacts with their records, and makes none.

  `changes`: by artifact, the dotted names of its dependencies that have changed.
  """

  def __init__(self, monkeypatch):
    self.changes = {}
    monkeypatch.setattr(Artifacts, "_ensure", self._compare(self))

  @staticmethod
  def _compare(recorded):
    def ensure(self, name, dependencies, make, atomic):
      note = json.loads(self.path(f"{name}.meta.json").read_text())
      self.digests[name] = note["digest"]
      names = changed(dependencies, note["dependencies"])
      if names:
        recorded.changes[name] = names
      return self.path(name)

    return ensure
