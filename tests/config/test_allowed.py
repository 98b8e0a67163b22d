"""What a field may hold: bounds, choices, forms; where they are checked and how they are shown."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from frozen_jax.config.allowed import Allowed, check_allowed
from frozen_jax.config.section import Section, help_lines, resolve, setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner(Section):
  """A section within another."""

  section: ClassVar[str] = "outer.inner"

  share: float = setting(0.5, "a share", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Outer(Section):
  """A section with a field of each kind."""

  section: ClassVar[str] = "outer"

  count: int = setting(3, "a number", at_least=1)
  kind: str = setting("red", "a colour", choices=("", "red", "green"))
  ranks: tuple[int, ...] = setting((1, 5), "several", at_least=1, nonempty=True)
  names: tuple[str, ...] = setting((), "pairs", pattern=("[^=]+=[^=]+", "ours=theirs"))
  rates: Mapping[str, float] = setting({}, "by part", at_least=0)
  file: str = setting("x", "a file", nonempty=True)
  inner: Inner = setting(Inner(), "a section")
  free: Mapping[str, Any] = setting({}, "anything")


@pytest.mark.parametrize(
  "values, message",
  [
    ({"count": 0}, "config.outer.count is 0; it must be at least 1"),
    ({"kind": "gren"}, "is 'gren'; did you mean green?; it is one of '', red, green"),
    ({"kind": "RED"}, "did you mean red"),
    ({"kind": "blue-ish"}, "is 'blue-ish'; it is one of '', red, green"),
    ({"ranks": (5, 0)}, "config.outer.ranks holds 0; it must be at least 1"),
    ({"ranks": ()}, "config.outer.ranks is empty; give some"),
    ({"names": ("a=b", "c")}, "config.outer.names holds 'c'; write ours=theirs"),
    ({"rates": {"lm": -1.0}}, "config.outer.rates.lm is -1.0; it must be at least 0"),
    ({"rates": {"lm": math.inf}}, "rates.lm is inf; it must be a finite number, at least 0"),
    ({"file": ""}, "config.outer.file is empty; give one"),
    ({"inner": Inner(0.0), "count": -1}, "config.outer.count is -1"),
  ],
)
def test_a_value_that_is_not_allowed(values, message):
  for make in (lambda: Outer(**values), lambda: resolve(Outer, values, "outer")):
    with pytest.raises(UserError) as error:
      make()
    assert message in str(error.value)


@pytest.mark.parametrize(
  "values, message",
  [
    ({"ranks": [1, "2"]}, r"ranks \(each part\) is '2', but it takes a whole number"),
    ({"rates": {"lm": "fast"}}, "rates.lm is 'fast', but it takes a number"),
    ({"inner": {"share": 1}}, "config.here.inner.share is 1.0; it must be at least 0 and below 1"),
  ],
)
def test_parts_are_of_the_fields_type(values, message):
  with pytest.raises(UserError, match=message):
    resolve(Outer, values, "here")


def test_what_is_allowed():
  values = {"count": 1, "kind": "", "ranks": [7], "names": ["a=b.c"], "rates": {"lm": 0}}
  found = resolve(Outer, values | {"inner": {"share": 0}, "free": {"any": -1}}, "outer")
  assert (found.ranks, found.inner.share, found.free) == ((7,), 0.0, {"any": -1})


def test_help_shows_the_limits():
  lines = "\n".join(help_lines(Outer(), "outer"))
  assert "a number (at least 1)" in lines and "a colour ('', red, green)" in lines
  assert "a share (at least 0 and below 1)" in lines


def test_a_number_of_another_type_is_no_number_within_bounds():
  with pytest.raises(UserError, match="it must be a finite number, above 0"):
    check_allowed(Allowed(above=0), "one", "x")
