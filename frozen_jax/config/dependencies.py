"""What a checkpoint or an artifact depends on: recorded with it, and compared before it is reused.

Dependencies are a dict of sections of a config (`config.section`) and plain JSON values, such as
the digest of a data file. Of a section only the fields that affect a result count, and a field that
a later version adds, with its default, changes nothing. Imports no jax.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from frozen_jax.config.section import Section, as_json, differences, fingerprint_values, identity

Json = Any  # None, bool, int, float, str, and lists, tuples and dicts of them
Dependencies = Mapping[str, Section | Json]

_KEY_DIGITS = 8


def record(dependencies: Dependencies) -> dict[str, Json]:
  """The dependencies as JSON, to be stored and given to `changed` later."""
  return {
    name: identity(value) if dataclasses.is_dataclass(value) else as_json(value)
    for name, value in dependencies.items()
  }


def changed(dependencies: Dependencies, recorded: Mapping[str, Json]) -> list[str]:
  """The dotted names of what differs from what `record` once gave; empty if nothing does.

  An entry that was not recorded counts as changed, unless it is a section whose fields all have
  their defaults. One that was recorded and is gone by now is ignored.
  """
  names = []
  for name, value in dependencies.items():
    if dataclasses.is_dataclass(value):
      before = recorded.get(name, {})
      names += differences(value, before, name) if isinstance(before, Mapping) else [name]
    elif name not in recorded:
      names.append(name)
    else:
      names += _json_differences(as_json(value), recorded[name], name)
  return names


def key(dependencies: Dependencies) -> str:
  """8 hex digits that name the dependencies, for the name of a file or folder.

  A section whose fields all have their defaults does not count, and of the others only the fields
  that differ from them.
  """
  values = {}
  for name, value in dependencies.items():
    if not dataclasses.is_dataclass(value):
      values[name] = as_json(value)
    elif fields := fingerprint_values(value):
      values[name] = fields
  text = json.dumps(values, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def changed_fields(value: Any) -> dict[str, Json]:
  """The fields of a frozen dataclass that do not have their defaults: new fields leave it equal."""
  plain = dataclasses.asdict(value)
  return {
    field.name: plain[field.name]
    for field in dataclasses.fields(value)
    if getattr(value, field.name) != field.default
  }


def _json_differences(now: Json, before: Json, name: str) -> list[str]:
  """The dotted names of the entries in which two JSON values differ."""
  if not (isinstance(now, dict) and isinstance(before, Mapping)):
    return [] if now == before else [name]
  names = []
  for entry in sorted({*now, *before}):
    if entry in now and entry in before:
      names += _json_differences(now[entry], before[entry], f"{name}.{entry}")
    else:
      names.append(f"{name}.{entry}")
  return names
