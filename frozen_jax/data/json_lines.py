"""JSON-lines files as random-access sequences; plain files are memory-mapped."""

import functools
import gzip
import hashlib
import mmap
import pathlib
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import user_read_errors
from frozen_jax.core.json_row import parse_row

_PARSED_ON_OPENING = 100_000  # lines


class JsonLines:
  """The objects of a .jsonl or .jsonl.gz file, by index; blank lines do not count.

  One pass on opening indexes the start of each line. A plain file stays on disk; a .gz file is
  unpacked into memory, since it has no random access. The first 100,000 lines are parsed on
  opening, so that a mistake is reported before anything runs; later ones when they are read.

  Raises UserError for a missing, empty or damaged file and, with the number of the line, for a
  line that is no JSON object.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    self._bytes = _read(self.path)
    self._starts, self._line_numbers = _index_lines(self._bytes)
    if not len(self._starts):
      raise UserError(f"{self.path} holds no examples; give a file with one JSON object a line")
    for index in range(min(len(self), _PARSED_ON_OPENING)):
      self[index]

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    start = int(self._starts[index])
    end = self._bytes.find(b"\n", start)
    return parse_row(self._bytes[start : end if end >= 0 else None], self.describe(index))

  @functools.cached_property
  def digest(self) -> str:
    """The SHA-256 (hex) of the unpacked contents."""
    return hashlib.sha256(self._bytes).hexdigest()

  def describe(self, index: int) -> str:
    """Where a row is, for messages: `FILE, line N`."""
    return f"{self.path}, line {self._line_numbers[index]}"


def _read(path: pathlib.Path) -> bytes | mmap.mmap:
  with user_read_errors(path):
    if path.name.endswith(".gz"):
      with gzip.open(path) as file:
        return file.read()
    with path.open("rb") as file:
      if not path.stat().st_size:
        return b""
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index_lines(contents: bytes | mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
  """The starts of the non-blank lines, and their numbers (from 1)."""
  starts, numbers = [], []
  start, number, size = 0, 1, len(contents)
  while start < size:
    end = contents.find(b"\n", start)
    end = size if end < 0 else end
    if contents[start:end].strip():
      starts.append(start)
      numbers.append(number)
    start, number = end + 1, number + 1
  return np.array(starts, np.int64), np.array(numbers, np.int64)
