"""What the data modules require of a collection of rows: a length, and rows by index."""

from typing import Protocol, TypeVar, runtime_checkable

from frozen_jax.core.json_row import Row

Row_co = TypeVar("Row_co", covariant=True)


@runtime_checkable
class Rows(Protocol[Row_co]):
  """Rows by index, from 0; an IndexError beyond the last. Lists are Rows too."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Row_co: ...


class StoredRows(Rows[Row], Protocol):
  """Rows of one file or prepared split, as they are stored."""

  @property
  def digest(self) -> str:
    """A hash (hex) of the contents."""
    ...

  def describe(self, index: int) -> str:
    """Where a row is, for messages: `FILE, line N`."""
    ...
