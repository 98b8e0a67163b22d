"""Which values a field of a section may have: declared with the field, checked, and put in words.

A field of several values (a tuple, a mapping) declares what each of them may be.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError


class Allowed(NamedTuple):
  """What a field may hold; the defaults allow everything.

  choices   the texts that there are; (): any text
  at_least  the smallest number
  above     what a number must be larger than
  at_most   the largest number
  below     what a number must be smaller than
  nonempty  whether an empty text or tuple is refused
  pattern   a regular expression that a text matches as a whole, and how one is written
  """

  choices: tuple[str, ...] = ()
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None
  nonempty: bool = False
  pattern: tuple[str, str] = ("", "")

  @property
  def bounds(self) -> str:
    """The bounds of a number in words, "" where it has none."""
    limits = {
      "at least": self.at_least,
      "above": self.above,
      "at most": self.at_most,
      "below": self.below,
    }
    return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

  def help(self) -> str:
    """The limits as `--help` shows them, "" where there are none."""
    return ", ".join(choice or "''" for choice in self.choices) or self.bounds


def check_allowed(allowed: Allowed, value: Any, key: str) -> None:
  """Checks the value of the config's `key`.

  Raises:
    UserError: it is not allowed; of a choice the nearest one is named.
  """
  if allowed.nonempty and not value:
    raise UserError(f"config.{key} is empty; give {'one' if isinstance(value, str) else 'some'}")
  for name, part, several in _parts(value, key):
    given = f"config.{name} {'holds' if several else 'is'} {part!r}"
    if allowed.choices and part not in allowed.choices:
      raise UserError(f"{given}{_nearest(part, allowed.choices)}; it is one of {allowed.help()}")
    if allowed.bounds and not _within(allowed, part):
      raise UserError(f"{given}; it must be {_wanted(allowed, part)}")
    pattern, form = allowed.pattern
    if pattern and not (isinstance(part, str) and re.fullmatch(pattern, part)):
      raise UserError(f"{given}; write {form}")


def _parts(value: Any, key: str) -> Iterator[tuple[str, Any, bool]]:
  """(key, value, whether it is one of several) of each value of a field."""
  if isinstance(value, Mapping):
    for name, one in value.items():
      yield f"{key}.{name}", one, False
  elif isinstance(value, tuple | list):
    for one in value:
      yield key, one, True
  else:
    yield key, value, False


def _within(allowed: Allowed, number: Any) -> bool:
  """Whether it is a finite number within the bounds."""
  if type(number) not in (int, float) or not math.isfinite(number):
    return False
  return (
    (allowed.at_least is None or number >= allowed.at_least)
    and (allowed.above is None or number > allowed.above)
    and (allowed.at_most is None or number <= allowed.at_most)
    and (allowed.below is None or number < allowed.below)
  )


def _wanted(allowed: Allowed, value: Any) -> str:
  finite = type(value) is int or (type(value) is float and math.isfinite(value))
  return allowed.bounds if finite else f"a finite number, {allowed.bounds}"


def _nearest(value: Any, choices: tuple[str, ...]) -> str:
  near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
  return f"; did you mean {near[0]}?" if near and near[0] else ""
