"""Tables of text with a header: CSV, and TSV quoted as CSV is; fields may have any length."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence

from frozen_jax.core.errors import UserError
from frozen_jax.core.reading import unpacked_name
from frozen_jax.core.text_file import decode, number_lines

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

csv.field_size_limit(sys.maxsize)  # its default refuses a long passage


def delimiter_of(name: str) -> str | None:
  """The character between the fields of a file of this name; None: it is no table."""
  return _DELIMITERS.get(unpacked_name(name)[-4:].lower())


def header_of(lines: Iterable[bytes], name: str) -> list[str]:
  """The names of a table's columns; UserError where it has none, or two of one name."""
  _, _, header = next(table_records(lines, name), (0, 0, []))
  columns = [column.strip() for column in header]
  if not all(columns) or len(set(columns)) < len(columns) or not columns:
    raise UserError(f"{name}, line 1: a table's header must name each column, once; add one")
  return columns


def table_records(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, int, list[str]]]:
  """(number of the first line, its offset, fields) of each record, the header included.

  A quoted field may hold line ends. Records without any text are left out.

  Raises:
    UserError: an open quote, text that is not UTF-8; the message names the line.
  """
  starts: list[tuple[int, int]] = []  # of the lines of the present record

  def text() -> Iterator[str]:
    for number, start, line in number_lines(lines, name):
      starts.append((number, start))
      yield decode(line, f"{name}, line {number}").replace("\r\n", "\n")

  delimiter = delimiter_of(name) or ","
  reader = csv.reader(text(), delimiter=delimiter, strict=True)
  try:
    for fields in reader:
      (number, start), *_ = starts
      starts.clear()
      if any(field.strip() for field in fields):
        yield number, start, fields
  except csv.Error as error:
    number = starts[0][0] if starts else 1
    raise UserError(
      f"{name}, line {number}: not a row of fields, quoted as in CSV ({error}); fix that line"
    ) from error


def record_fields(record: bytes, delimiter: str, where: str) -> list[str]:
  """The fields of one record, which `table_records` has read before."""
  text = decode(record, where).replace("\r\n", "\n")
  return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def check_width(fields: Sequence[str], columns: Sequence[str], where: str) -> None:
  """Raises UserError where a record has not one field for each column."""
  if len(fields) != len(columns):
    raise UserError(
      f"{where}: {len(fields)} fields under a header of {len(columns)} ({', '.join(columns)});"
      " quote a field that holds the separator"
    )
