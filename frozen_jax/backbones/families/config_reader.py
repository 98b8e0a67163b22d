"""Reading a model's config.json or GGUF metadata key by key; what is not understood is an error.

A family's function reads the keys that it understands from a `ConfigReader` and returns a config;
`finish` then reports in one line all keys that are missing, of the wrong type, or unread. Of the
unread ones those count that may change what the model computes: of GGUF metadata all, of a
config.json those of `refuse_only`; none that is switched off (`OFF`).
"""

import fnmatch
from collections.abc import Mapping
from typing import Any, TypeVar

from frozen_jax.core.errors import UserError

REQUIRED: Any = object()
OFF = (False, 0, "", "none", (), {})  # values of an unread key that turn nothing on (0.0 is 0)
T = TypeVar("T")


def is_off(value: Any) -> bool:
  """Whether the value of a key that a family does not have turns nothing on."""
  return (tuple(value) if isinstance(value, list) else value) in OFF


class ConfigReader:
  """The keys and values of one file; a null value counts as absent unless `nullable` is set.

  `where`: the file, for messages.
  """

  def __init__(self, stored: Mapping[str, Any], where: str):
    self.where = where
    self._stored = {key: value for key, value in stored.items() if value is not None}
    self._null = stored.keys() - self._stored.keys()
    self._read: set[str] = set()
    self._faults: list[str] = []
    self._missing: list[str] = []
    self._nested: dict[str, ConfigReader] = {}
    self._refused: tuple[str, ...] = ("*",)

  def __contains__(self, key: str) -> bool:
    return key in self._stored

  def integer(self, *keys: str, default: Any = REQUIRED, nullable: bool = False) -> Any:
    """The first of the keys that is present, as an int; `nullable`: None if the first is null."""
    if nullable and keys[0] in self._null:
      return None
    value = self._get(keys, default, 1)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
      return self._wrong(keys, value, "a whole number", 1) if value is not None else None
    return int(value)

  def number(self, *keys: str, default: Any = REQUIRED, nullable: bool = False) -> Any:
    """The first of the keys that is present, as a float; `nullable`: None if the first is null."""
    if nullable and keys[0] in self._null:
      return None
    value = self._get(keys, default, 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool):
      return self._wrong(keys, value, "a number", 1.0) if value is not None else None
    return float(value)

  def boolean(self, *keys: str, default: Any = REQUIRED) -> bool:
    """The first of the keys that is present, true or false."""
    value = self._get(keys, default, False)
    return value if isinstance(value, bool) else self._wrong(keys, value, "true or false", False)

  def string(self, *keys: str, default: Any = REQUIRED, choices: Any = None) -> str:
    """The first of the keys that is present, a string; `choices`: the values understood."""
    value = self._get(keys, default, "")
    if not isinstance(value, str):
      return self._wrong(keys, value, "a string", "")
    if choices is not None and value not in choices and value:
      self._faults.append(f"{self._present_key(keys)} = {value!r}")
    return value

  def sequence(self, *keys: str, default: Any = REQUIRED) -> tuple[Any, ...]:
    """The first of the keys that is present, a list of numbers or strings, as a tuple."""
    value = self._get(keys, default, ())
    if isinstance(value, list | tuple):
      return tuple(value)
    return self._wrong(keys, value, "a list", ())

  def numbers(self, key: str) -> tuple[float, ...]:
    """A list of numbers, as a tuple of floats."""
    values = self.sequence(key)
    if all(isinstance(value, int | float) for value in values):
      return tuple(map(float, values))
    return self._wrong((key,), list(values), "a list of numbers", ())

  def nested(self, key: str) -> "ConfigReader":
    """The reader of a nested object; without keys where the object is absent."""
    self._read.add(key)
    value = self._stored.get(key, {})
    if key not in self._nested:
      if not isinstance(value, Mapping):
        self._wrong((key,), value, "an object", None)
        value = {}
      self._nested[key] = ConfigReader(value, f"{key}.")
    return self._nested[key]

  def expect(self, **allowed: Any) -> None:
    """Reads keys that must have this value (or one of a tuple of values) where they are present."""
    for key, values in allowed.items():
      self._read.add(key)
      values = values if isinstance(values, tuple) else (values,)
      if key in self._stored and self._stored[key] not in values:
        self._faults.append(f"{key} = {self._stored[key]!r}")

  def reject(self, key: str) -> None:
    """Reports a key, if it is present, as not understood."""
    self.expect(**{key: ()})

  def ignore(self, *keys: str) -> None:
    """Skips keys that do not affect a frozen model's output; `*` in them matches anything."""
    for pattern in keys:
      self._read.update(fnmatch.filter(self._stored, pattern))

  def refuse_only(self, *keys: str) -> None:
    """Of the keys that nobody reads, here and in nested objects, only these are reported; `*` in
    them matches anything."""
    self._refused = keys

  def rename(self, **names: str) -> None:
    """Takes old=new keys, of one meaning, for the new ones; reports an old one that contradicts."""
    for old, new in names.items():
      self._read.add(old)
      if (
        old in self._stored and self._stored.setdefault(new, self._stored[old]) != self._stored[old]
      ):
        self.reject(old)

  def finish(self) -> None:
    """Raises UserError if anything was missing, of the wrong type, or not understood."""
    missing, faults = self._all_faults("", self._refused)
    if missing:
      raise UserError(
        f"{self.where} does not say {', '.join(missing)}; the file may not be a model's"
      )
    if faults:
      raise UserError(
        f"{self.where} has settings that frozen_jax does not understand, so the model would "
        f"compute something else: {'; '.join(sorted(faults))}. Remove them if they do not matter "
        "to this model"
      )

  def _all_faults(self, prefix: str, refused: tuple[str, ...]) -> tuple[list[str], list[str]]:
    unread = [
      f"{key} = {value!r}"
      for key, value in self._stored.items()
      if key not in self._read
      and not is_off(value)
      and any(fnmatch.fnmatchcase(key, pattern) for pattern in refused)
    ]
    missing = [prefix + key for key in self._missing]
    faults = [prefix + fault for fault in (*self._faults, *unread)]
    for key, nested in self._nested.items():
      nested_missing, nested_faults = nested._all_faults(f"{prefix}{key}.", refused)
      missing, faults = missing + nested_missing, faults + nested_faults
    return missing, faults

  def _get(self, keys: tuple[str, ...], default: T, substitute: T) -> T:
    self._read.update(keys)
    for key in keys:
      if key in self._stored:
        return self._stored[key]
    if default is REQUIRED:
      self._missing.append(keys[0])
      return substitute
    return default

  def _present_key(self, keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in self._stored), keys[0])

  def _wrong(self, keys: tuple[str, ...], value: Any, needed: str, substitute: T) -> T:
    self._faults.append(f"{self._present_key(keys)} = {value!r}, where {needed} is needed")
    return substitute
