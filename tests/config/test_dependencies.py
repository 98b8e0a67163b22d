"""Dependencies: recorded, compared with a later version's, and hashed to a short key."""

import dataclasses
import json

import pytest

from frozen_jax.config import dependencies
from frozen_jax.config.section import setting


@dataclasses.dataclass(frozen=True)
class Inner:
  """A section within a section."""

  width: int = setting(4, "columns")


@dataclasses.dataclass(frozen=True)
class Settings:
  """A section of today."""

  rate: float = setting(0.1, "learning rate")
  lengths: tuple[int, ...] = setting((1, 2), "tokens")
  log_every: int = setting(10, "steps between lines", affects_result=False)
  inner: Inner = setting(Inner(), "a part")


@dataclasses.dataclass(frozen=True)
class LaterSettings(Settings):
  """The same section in a later version."""

  dropout: float = setting(0.0, "share of values that are dropped")


def stored(entries):
  """What a file gives back of a record."""
  return json.loads(json.dumps(dependencies.record(entries)))


def test_the_same_dependencies_have_not_changed():
  entries = {"train": Settings(0.2), "data": {"sha256": "ab", "sizes": (1, 2)}, "seed": 3}
  assert dependencies.changed(entries, stored(entries)) == []
  assert stored(entries)["train"] == {"rate": 0.2, "lengths": [1, 2], "inner": {"width": 4}}


@pytest.mark.parametrize(
  "later, names",
  [
    ({"train": Settings(0.3)}, ["train.rate"]),
    ({"train": Settings(0.2, (1, 3), inner=Inner(5))}, ["train.lengths", "train.inner.width"]),
    ({"train": Settings(0.2, log_every=1)}, []),
    ({"seed": 4}, ["seed"]),
    ({"data": {"sha256": "cd", "more": 1}}, ["data.more", "data.sha256"]),
    ({"data": "cd"}, ["data"]),
    ({}, []),
    ({"new": "x"}, ["new"]),
    ({"new": Settings()}, []),
    ({"new": Settings(0.5)}, ["new.rate"]),
    ({"seed": Settings(0.5)}, ["seed"]),
  ],
)
def test_what_has_changed_is_named(later, names):
  recorded = stored({"train": Settings(0.2), "data": {"sha256": "ab"}, "seed": 3})
  assert dependencies.changed(later, recorded) == names


def test_a_field_added_later_with_its_default_changes_nothing():
  recorded = stored({"train": Settings(0.2)})
  assert dependencies.changed({"train": LaterSettings(0.2)}, recorded) == []
  assert dependencies.changed({"train": LaterSettings(0.2, dropout=0.1)}, recorded) == [
    "train.dropout"
  ]


def test_the_key_names_what_counts():
  key = dependencies.key({"train": Settings(0.2), "seed": 3})
  assert len(key) == 8 and int(key, 16) >= 0
  assert key == dependencies.key({"seed": 3, "train": Settings(0.2)})
  assert key == dependencies.key({"seed": 3, "train": LaterSettings(0.2, log_every=1)})
  assert key == dependencies.key({"seed": 3, "train": Settings(0.2), "more": Settings()})
  assert key != dependencies.key({"seed": 4, "train": Settings(0.2)})
  assert key != dependencies.key({"seed": 3, "train": Settings(0.3)})
  assert dependencies.key({"sizes": (1, 2)}) == dependencies.key({"sizes": [1, 2]})
