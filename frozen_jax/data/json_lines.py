"""Files of rows as random-access sequences: JSON lines, arrays of JSON, and tables.

Plain files of JSON lines are memory-mapped; what has no random access is held in memory.
"""

import functools
import hashlib
import io
import json
import mmap
import pathlib
from collections.abc import Iterator

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import Row, array_rows, is_array, parse_row
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.reading import (
  is_gzip,
  local_file,
  open_unpacked,
  unpacked_name,
  user_read_errors,
)
from frozen_jax.core.tables import check_width, delimiter_of, header_of, table_records
from frozen_jax.core.text_file import check_encoding, decode_whole, is_blank
from frozen_jax.core.user_path import user_path

ENDINGS = (".jsonl", ".json", ".csv", ".tsv")


def is_row_file(name: str) -> bool:
  """Whether a file of this name holds rows, gzipped or not."""
  return unpacked_name(name).lower().endswith(ENDINGS)


class JsonLines:
  """The objects of a file, by index; blank lines do not count.

  A file is JSON lines, or one array of objects, or a table with a header (.csv, .tsv), whose rows
  are objects of texts; each may be gzipped. One pass on opening indexes the start of each row.

  Raises UserError for a missing, empty or damaged file and, with the number of the line, for a
  row that is no object; of JSON lines, when it is read.
  """

  def __init__(self, path: str | pathlib.Path | StorePath):
    self.path = user_path(path)
    self._bytes, self._locations = _rows(self.path)
    self._offsets, self._line_numbers = _index_lines(self._bytes)
    if not len(self._offsets):
      raise UserError(f"{self.path} holds no examples; give a file with one JSON object a line")

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> Row:
    if not 0 <= index < len(self):
      raise IndexError(index)
    start = int(self._offsets[index])
    end = self._bytes.find(b"\n", start)
    return parse_row(self._bytes[start : end if end >= 0 else None], self.describe(index))

  def __iter__(self) -> Iterator[Row]:
    return (self[index] for index in range(len(self)))

  @functools.cached_property
  def digest(self) -> str:
    """The SHA-256 (hex) of the unpacked contents, as JSON lines."""
    return hashlib.sha256(self._bytes).hexdigest()

  def describe(self, index: int) -> str:
    """Where a row is, for messages: `FILE, line N`."""
    if self._locations:
      return self._locations[index]
    return f"{self.path}, line {self._line_numbers[index]}"


def _rows(path: AnyPath) -> tuple[bytes | mmap.mmap, list[str]]:
  """The file as JSON lines, and where each row is unless that is a line of the file."""
  contents, name = _read(path), str(path)
  if delimiter_of(path.name):
    rows = list(_table_rows(contents[:], name))
  elif is_array(contents[:4096]):
    rows = list(array_rows(decode_whole(contents[:], name), name))
  else:
    check_encoding(contents[:4], name)
    return contents, []
  return "\n".join(row for _, row in rows).encode(), [where for where, _ in rows]


def _table_rows(contents: bytes, name: str) -> Iterator[tuple[str, str]]:
  """(where it is, its JSON) of each row of a table."""
  if not contents.strip():
    return
  columns = header_of(io.BytesIO(contents), name)
  records = table_records(io.BytesIO(contents), name)
  next(records)  # the header
  for number, _, fields in records:
    where = f"{name}, line {number}"
    check_width(fields, columns, where)
    yield where, json.dumps(dict(zip(columns, fields, strict=True)), ensure_ascii=False)


def _read(given: AnyPath) -> bytes | mmap.mmap:
  with user_read_errors(given):
    if is_gzip(given.name):
      with open_unpacked(given) as file:
        return file.read()
    path = local_file(given)
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
    if not is_blank(contents[start:end]):
      starts.append(start)
      numbers.append(number)
    start, number = end + 1, number + 1
  return np.array(starts, np.int64), np.array(numbers, np.int64)
