"""What the data floor asks of any collection of rows: a length, and each row by its position."""

from typing import Protocol, TypeVar

Row = TypeVar("Row", covariant=True)


class Rows(Protocol[Row]):
  """Rows by position, from 0; an IndexError beyond the last. Lists are Rows too."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Row: ...
