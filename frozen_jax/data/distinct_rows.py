"""Which rows something has happened to, each counted once, however often it is drawn."""

from collections.abc import Iterable, Mapping
from typing import Any


class DistinctRows:
  """Sets of rows under given names; the state is plain JSON values if the rows' names are."""

  def __init__(self, *names: str):
    self._rows: dict[str, set[Any]] = {name: set() for name in names}

  @property
  def counts(self) -> dict[str, int]:
    """How many rows are under each name."""
    return {name: len(rows) for name, rows in self._rows.items()}

  def add(self, rows: Mapping[str, Iterable[Any]]) -> None:
    """Enters rows under their names."""
    for name, added in rows.items():
      self._rows[name].update(added)

  def get_state(self) -> dict[str, list[Any]]:
    """The rows, in order."""
    return {name: sorted(rows) for name, rows in self._rows.items()}

  def set_state(self, state: Mapping[str, Iterable[Any]]) -> None:
    """Restores a state; a name that it lacks, as an earlier version's does, starts anew."""
    self._rows = {name: set(state.get(name, ())) for name in self._rows}
