"""Text as people save it: UTF-8, with or without a mark, in lines that end in \\n or \\r\\n.

The one owner of these rules. Other characters that Unicode or Python take for line ends (U+2028,
U+0085, form feed, a lone \\r) are part of a line. What is not UTF-8 is an error with its line.
"""

import codecs
import sys
from collections.abc import Iterable, Iterator

from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.reading import open_unpacked

MARK = "\ufeff"  # UTF-8's byte-order mark; `cat` of several files leaves it within the text
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's, too, starts with these
_SAVE = "save the file as UTF-8"


def numbered_lines(path: AnyPath) -> Iterator[tuple[int, int, bytes]]:
  """(number from 1, offset of the first byte in the unpacked file, bytes) of each non-blank line.

  A file whose name ends in .gz is unpacked while it is read.

  Raises:
    UserError: the file is missing or cannot be read, is UTF-16, or the gzip file is damaged.
  """
  with open_unpacked(path) as file:
    yield from (line for line in number_lines(file, str(path)) if not is_blank(line[2]))


def number_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, int, bytes]]:
  """(number, offset, bytes) of each line, blank ones too; UserError naming `name` for UTF-16."""
  start = 0
  for number, line in enumerate(lines, start=1):
    if number == 1:
      check_encoding(line, name)
    yield number, start, line
    start += len(line)


def text_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
  """Lines as texts, without their ends; UserError naming `name` and the line if not UTF-8."""
  for number, _, line in number_lines(lines, name):
    yield decode(line.removesuffix(b"\n").removesuffix(b"\r"), f"{name}, line {number}")


def standard_input_lines() -> Iterator[str]:
  """The lines of standard input as they come, as `text_lines`, whatever encoding is set for it."""
  lines = getattr(sys.stdin, "buffer", None) or (line.encode() for line in sys.stdin or ())
  return text_lines(lines, "standard input")


def read_text(path: AnyPath) -> str:
  """A whole file, gzipped or not, without its mark; UserError where it is not UTF-8, and where."""
  with open_unpacked(path) as file:
    return decode_whole(file.read(), str(path))


def decode_whole(data: bytes, name: str) -> str:
  """The text of a whole file; UserError naming `name` and the line of a malformed byte."""
  check_encoding(data, name)
  try:
    return data.decode().removeprefix(MARK)
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise _not_utf8(f"{name}, line {line}", error) from error


def decode(line: bytes, where: str) -> str:
  """One line's text, without a mark at its start; UserError beginning with `where` if not UTF-8."""
  try:
    return line.decode().removeprefix(MARK)
  except UnicodeDecodeError as error:
    raise _not_utf8(where, error) from error


def check_characters(text: str, where: str) -> str:
  """The text; UserError beginning with `where` for half of a surrogate pair, which is no character.

  JSON can write one ("\\ud83d" without its other half), and Python makes one of a malformed byte
  in an argument of the command line.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    half = f"\\u{ord(text[error.start]):04x}"
    raise UserError(
      f"{where}: {half} is half of a surrogate pair, not a character; fix or remove that text"
    ) from error
  return text


def is_blank(line: bytes) -> bool:
  """Whether a line holds white space alone, or a mark."""
  return not line.strip().removeprefix(codecs.BOM_UTF8)


def check_encoding(start: bytes, name: str) -> None:
  """Raises UserError for a file that starts as UTF-16 or UTF-32 does."""
  if start.startswith(_OTHER_MARKS):
    raise UserError(f"{name}, line 1: UTF-16 text, not UTF-8; {_SAVE}")


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
  return UserError(f"{where}: not UTF-8 text (byte 0x{error.object[error.start]:02x}); {_SAVE}")
