"""Sections of a config as frozen dataclasses: their values, their help, and what depends on them.

The owner of a section defines it next to the code that uses it, in a module that imports no jax
where a config file must be able to name its defaults:

    @dataclasses.dataclass(frozen=True)
    class TrainSettings(Section):
      "How a stage is trained."

      section: ClassVar[str] = "train"

      steps: int = setting(100, "updates of the trained tree", at_least=0)
      log_every: int = setting(
        10, "steps between two lines of metrics.jsonl", affects_result=False, at_least=1
      )

Values are checked when a section is made: before any model or data is opened, and by `--help` too.
A field may be a section itself. `resolve` makes a section of the plain values of a config;
`identity` gives what results depend on, for checkpoints and artifacts; `differences` compares that
with what one of them recorded, so that a field which a later version adds, with its default, leaves
older ones valid. Imports no jax.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from frozen_jax.config.allowed import Allowed, check_allowed
from frozen_jax.core.errors import UserError

T = TypeVar("T")

# What a value is called in messages, by its type.
KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of a config; its fields are made by `setting`.

  section: where it stands in a config, for messages.

  Raises UserError for a value that its field does not allow. A section whose fields depend on each
  other checks that in its own `__post_init__`, after this one.
  """

  section: ClassVar[str] = ""

  def __post_init__(self) -> None:
    for field, value in _fields(self):
      check_allowed(allowed(field), value, f"{self.section}.{field.name}")

  def as_used(self, given: Self) -> Self:
    """The section that a model was trained with, as it is used where a config has `given`.

    It is the same but for what a method lets be chosen at use.
    """
    del given
    return self


def setting(
  default: Any, help: str, *, affects_result: bool = True, of_weights: bool = False, **limits: Any
) -> Any:
  """A field of a section.

  Args:
    default: its value where a config says nothing; a section, or an immutable plain value.
    help: one line for `--help`, lower case, without a full stop; `limits` are added to it.
    affects_result: whether what is trained or made depends on it. Logging and the like do not.
    of_weights: whether trained numbers compute something else under another value, though their
      shapes are the same.
    limits: what its values may be, the fields of `Allowed`. Numbers have bounds.
  """
  metadata = {"help": help, "affects_result": affects_result, "of_weights": of_weights}
  metadata["allowed"] = Allowed(**limits)
  if isinstance(default, Mapping):  # mutable for dataclasses, and copied for each section
    return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def allowed(field: dataclasses.Field) -> Allowed:
  """What a field of a section may hold."""
  return field.metadata.get("allowed", Allowed())


def section_values(section: Section) -> dict[str, Any]:
  """The values of a section as a config holds them: nested dicts, lists as tuples."""
  return {
    field.name: section_values(value) if dataclasses.is_dataclass(value) else value
    for field, value in _fields(section)
  }


def resolve(kind: type[T], values: Mapping[str, Any], name: str) -> T:
  """The section of that kind with these values, and defaults for what they leave out.

  Args:
    values: plain values of a config; lists may stand for tuples.
    name: of the section, for messages.

  Raises:
    UserError: a key that the section does not have, a value of another kind or one that its field
      does not allow, or no section.
  """
  if not isinstance(values, Mapping):
    raise UserError(f"config.{name} is {values!r}; it is a section, with keys of its own")
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  for key in values:
    if key not in fields:
      raise UserError(unknown_key(f"{name}.{key}" if name else key, list(fields), name))
  types = typing.get_type_hints(kind)
  resolved = {
    key: _value(types[key], value, fields[key], f"{name}.{key}" if name else key)
    for key, value in values.items()
  }
  return kind(**resolved)


def identity(section: Section) -> dict[str, Any]:
  """What results depend on, as JSON has it: all fields but those that do not affect a result."""
  return {
    field.name: identity(value) if dataclasses.is_dataclass(value) else as_json(value)
    for field, value in _fields(section)
    if field.metadata.get("affects_result", True)
  }


def of_weights(section: Section, name: str) -> dict[str, Any]:
  """{dotted key: value} of the fields without which trained numbers mean nothing; see `setting`."""
  found = {}
  for field, value in _fields(section):
    key = f"{name}.{field.name}"
    if dataclasses.is_dataclass(value):
      found |= of_weights(value, key)
    elif field.metadata.get("of_weights", False):
      found[key] = value
  return found


def fingerprint_values(section: Section) -> dict[str, Any]:
  """`identity` without the fields that have their defaults: a hash of it outlives new fields."""
  usual = type(section)()
  values = {}
  for field, value in _fields(section):
    default = getattr(usual, field.name)
    if not field.metadata.get("affects_result", True) or value == default:
      continue
    nested = dataclasses.is_dataclass(value)
    values[field.name] = fingerprint_values(value) if nested else as_json(value)
  return values


def with_free_fields(section: Section, given: Section) -> dict[str, Any]:
  """The values of a section, with those of `given` in the fields that do not affect a result."""
  free = [
    field.name for field, _ in _fields(section) if not field.metadata.get("affects_result", True)
  ]
  return section_values(section) | {name: getattr(given, name) for name in free}


def differences(section: Section, recorded: Mapping[str, Any], name: str) -> list[str]:
  """The dotted keys in which a section differs from what `identity` once recorded of it.

  A field that was not recorded is as it was if it has its default. One that was recorded and is
  gone by now counts as no difference.
  """
  usual, found = type(section)(), []
  for field, value in _fields(section):
    if not field.metadata.get("affects_result", True):
      continue
    key, default = f"{name}.{field.name}", getattr(usual, field.name)
    if dataclasses.is_dataclass(value):
      found += differences(value, recorded.get(field.name, identity(default)), key)
    elif recorded.get(field.name, as_json(default)) != as_json(value):
      found.append(key)
  return found


def help_lines(section: Section, prefix: str) -> list[str]:
  """One line for each field of a section: the flag with its value, and what it is.

  A field that holds entries of its own has a line for each of them.
  """
  lines = []
  for field, value in _fields(section):
    key = f"{prefix}.{field.name}"
    if dataclasses.is_dataclass(value):
      lines += help_lines(value, key)
    elif isinstance(value, Mapping):
      lines += [help_line(f"{key}.{name}", one, help_of(field)) for name, one in value.items()]
    else:
      lines.append(help_line(key, value, help_of(field)))
  return lines


def help_of(field: dataclasses.Field) -> str:
  """What a field is, and in brackets what it may hold."""
  limits = allowed(field).help()
  return field.metadata.get("help", "") + (f" ({limits})" if limits else "")


def help_line(key: str, value: Any, text: str) -> str:
  """`  --config.KEY=VALUE` with what the key is after it, or below where that is too long."""
  shown = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value or "")
  shown = str(value) if isinstance(value, bool | int | float) else shown
  quoted = f"'{shown}'" if any(c in shown for c in " {}()\n") else shown
  flag = f"  --config.{key}={quoted}".replace("\n", "\\n")
  if not text:
    return flag
  return f"{flag:<44}  {text}" if len(flag) <= 44 else f"{flag}\n{'':<46}{text}"


def unknown_key(key: str, known: list[str], section: str) -> str:
  """The message about a key that there is not, with the nearest that there is."""
  near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.6)
  where = f"config.{section}" if section else "config"
  meant = f"; did you mean {where}.{near[0]}?" if near else ""
  return f"unknown config key config.{key}{meant}; {where} has {', '.join(known)}"


def _fields(section: Section) -> list[tuple[dataclasses.Field, Any]]:
  return [(field, getattr(section, field.name)) for field in dataclasses.fields(section)]


def as_json(value: Any) -> Any:
  """A value as JSON gives it back: lists for tuples, dicts for other mappings."""
  return json.loads(json.dumps(value, default=dict))


def _value(kind: Any, value: Any, field: dataclasses.Field, name: str) -> Any:
  """A value of a config as the field has it."""
  if dataclasses.is_dataclass(kind):
    return value if dataclasses.is_dataclass(value) else resolve(kind, value, name)
  converted = _converted(kind, value, name)
  check_allowed(allowed(field), converted, name)
  return converted


def _converted(kind: Any, value: Any, name: str) -> Any:
  """A plain value as one of that kind; UserError for another kind of value."""
  origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin is tuple and isinstance(value, tuple | list):
    return tuple(_converted(arguments[0], one, f"{name} (each part)") for one in value)
  if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
    return {key: _converted(arguments[1], one, f"{name}.{key}") for key, one in value.items()}
  if kind is float and type(value) in (int, float):
    return float(value)
  if kind is Any or type(value) is kind:
    return value
  raise UserError(f"config.{name} is {value!r}, but it takes {KIND_NAMES.get(kind, 'a list')}")
