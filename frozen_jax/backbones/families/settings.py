"""Reading a model's settings: each is asked for by name, and what nobody asked for is an error.

A setting that was never looked at may change what the model computes, so it is never ignored. A
family's reader takes a `Settings`, asks for what it understands and returns a config; `finish` then
says in one line all that is missing, of the wrong type, or left over.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from frozen_jax.core.errors import UserError

REQUIRED: Any = object()
T = TypeVar("T")


class Settings:
  """The settings of one file; None counts as absent, unless a caller says that it is a value.

  `where` is the file, for messages.
  """

  def __init__(self, stored: Mapping[str, Any], where: str):
    self.where = where
    self._stored = {key: value for key, value in stored.items() if value is not None}
    self._null = stored.keys() - self._stored.keys()
    self._asked: set[str] = set()
    self._faults: list[str] = []
    self._missing: list[str] = []
    self._inner: dict[str, Settings] = {}

  def __contains__(self, key: str) -> bool:
    return key in self._stored

  def whole(self, *keys: str, default: Any = REQUIRED, nullable: bool = False) -> Any:
    """The first of the keys that is there, as an int; `nullable`: None where it says so."""
    if nullable and keys[0] in self._null:
      return None
    value = self._get(keys, default, 1)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
      return self._wrong(keys, value, "a whole number", 1) if value is not None else None
    return int(value)

  def number(self, *keys: str, default: Any = REQUIRED, nullable: bool = False) -> Any:
    """The first of the keys that is there, as a float; `nullable`: None where it says so."""
    if nullable and keys[0] in self._null:
      return None
    value = self._get(keys, default, 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool):
      return self._wrong(keys, value, "a number", 1.0) if value is not None else None
    return float(value)

  def flag(self, *keys: str, default: Any = REQUIRED) -> bool:
    """The first of the keys that is there, which must be true or false."""
    value = self._get(keys, default, False)
    return value if isinstance(value, bool) else self._wrong(keys, value, "true or false", False)

  def word(self, *keys: str, default: Any = REQUIRED, among: Any = None) -> str:
    """The first of the keys that is there, a string; `among`: those that are understood."""
    value = self._get(keys, default, "")
    if not isinstance(value, str):
      return self._wrong(keys, value, "a word", "")
    if among is not None and value not in among and value:
      self._faults.append(f"{self._name(keys)} = {value!r}")
    return value

  def numbers(self, *keys: str, default: Any = REQUIRED) -> tuple[Any, ...]:
    """The first of the keys that is there, a list of numbers or words, as a tuple."""
    value = self._get(keys, default, ())
    if isinstance(value, list | tuple):
      return tuple(value)
    return self._wrong(keys, value, "a list", ())

  def inner(self, key: str) -> "Settings":
    """The settings of a nested object; empty where there is none."""
    self._asked.add(key)
    value = self._stored.get(key, {})
    if key not in self._inner:
      if not isinstance(value, Mapping):
        self._wrong((key,), value, "an object", None)
        value = {}
      self._inner[key] = Settings(value, f"{key}.")
    return self._inner[key]

  def only(self, **allowed: Any) -> None:
    """Keys that must have this value (or one of a tuple of values) where they are present."""
    for key, values in allowed.items():
      self._asked.add(key)
      values = values if isinstance(values, tuple) else (values,)
      if key in self._stored and self._stored[key] not in values:
        self._faults.append(f"{key} = {self._stored[key]!r}")

  def silent(self, *keys: str) -> None:
    """Keys that do not change what a frozen model computes; a trailing `*` is anything."""
    for key in self._stored:
      if any(key.startswith(s[:-1]) if s.endswith("*") else key == s for s in keys):
        self._asked.add(key)

  def finish(self) -> None:
    """Raises UserError if anything was missing, of the wrong type, or not understood."""
    missing, faults = self._report("")
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

  def _report(self, prefix: str) -> tuple[list[str], list[str]]:
    left = [f"{key} = {self._stored[key]!r}" for key in self._stored if key not in self._asked]
    missing = [prefix + key for key in self._missing]
    faults = [prefix + fault for fault in (*self._faults, *left)]
    for key, inner in self._inner.items():
      more, odd = inner._report(f"{prefix}{key}.")
      missing, faults = missing + more, faults + odd
    return missing, faults

  def _get(self, keys: tuple[str, ...], default: T, standin: T) -> T:
    self._asked.update(keys)
    for key in keys:
      if key in self._stored:
        return self._stored[key]
    if default is REQUIRED:
      self._missing.append(keys[0])
      return standin
    return default

  def _name(self, keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in self._stored), keys[0])

  def _wrong(self, keys: tuple[str, ...], value: Any, needed: str, standin: T) -> T:
    self._faults.append(f"{self._name(keys)} = {value!r}, where {needed} is needed")
    return standin
