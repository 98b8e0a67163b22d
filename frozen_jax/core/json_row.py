"""Rows of JSON: one line of a JSON-lines file, or one element of an array of rows."""

import json
import math
from collections.abc import Iterator
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.text_file import check_characters, decode

Row = dict[str, Any]  # a JSON object; of the data, of artifacts or of predictions

_WHITE_SPACE = " \t\n\r"


def parse_row(line: bytes | str, where: str) -> Row:
  """The JSON object of a line.

  Raises:
    UserError: the line is no JSON object, no UTF-8 text, or has half of a surrogate pair in a
      string; the message begins with `where`.
  """
  text = decode(line, where) if isinstance(line, bytes) else line
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    raise UserError(f"{where}: malformed JSON ({reason}); fix or remove that line") from error
  if not isinstance(row, dict):
    raise UserError(f"{where}: a JSON {type(row).__name__}, not an object; write {{...}} there")
  if "\\ud" in text or "\\uD" in text:  # an escape that may be half of a pair
    check_characters(json.dumps(row, ensure_ascii=False), where)
  return row


def with_id(row: Row, where: str) -> Row:
  """The row, without an id that is null; UserError beginning with `where` for one that names
  nothing: a list, an object, true or false."""
  if "id" not in row:
    return row
  value = row["id"]
  if value is None:
    return {key: other for key, other in row.items() if key != "id"}
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise UserError(
      f"{where}: id is {json.dumps(value, default=str)[:40]}, where a text or a number is needed;"
      " fix it or leave it out"
    )
  return row


def without_nan(value: Any) -> Any:
  """A value with None for what JSON has no number for: NaN and infinities, at any depth."""
  if isinstance(value, dict):
    return {key: without_nan(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [without_nan(entry) for entry in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def is_array(start: bytes | str) -> bool:
  """Whether a text starts as an array of JSON does, after white space and a mark."""
  text = start.decode("utf-8", "replace") if isinstance(start, bytes) else start
  return text.removeprefix("\ufeff").lstrip(_WHITE_SPACE).startswith("[")


def array_rows(text: str, name: str) -> Iterator[tuple[str, str]]:
  """(where it is, its JSON on one line) of each element of an array of rows.

  Raises:
    UserError: the text is no array, or is malformed (with the line).
  """
  decoder, number, line, counted = json.JSONDecoder(), 0, 1, 0
  start = _skip(text, _skip(text, 0) + 1)  # after the opening bracket
  more = text[start : start + 1] != "]"
  try:
    while more:
      _, end = decoder.raw_decode(text, start)
      number, line, counted = number + 1, line + text.count("\n", counted, start), start
      # A string of JSON holds no raw line end, so each of these is white space.
      row = text[start:end].replace("\n", " ").replace("\r", " ")
      yield f"{name}, row {number} (line {line})", row
      end = _skip(text, end)
      if not (more := text[end : end + 1] == ",") and text[end : end + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
      start = _skip(text, end + 1) if more else end
    if _skip(text, start + 1) < len(text):
      raise json.JSONDecodeError("Extra data", text, start + 1)
  except (ValueError, RecursionError) as error:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
      line, reason = error.lineno, error.msg
    raise UserError(f"{name}, line {line}: malformed JSON ({reason}); fix that line") from error


def _skip(text: str, position: int) -> int:
  """The position of the next character that is no white space."""
  while text[position : position + 1] and text[position] in _WHITE_SPACE:
    position += 1
  return position


def accepted_texts(value: Any, key: str, where: str) -> list[str]:
  """A row's accepted answers as texts, of a text, a number, SQuAD's {"text": [...]}, or a list.

  Raises:
    UserError: none of these, nothing, or nothing but white space; the message names `key`.
  """
  entries = value if isinstance(value, list) else [value]
  if isinstance(value, dict) and "text" in value:
    return accepted_texts(value["text"], f"{key}.text", where)
  if not entries:
    raise UserError(f"{where}: {key} is empty, so there is no answer; fill it in or remove the row")
  several = isinstance(value, list)
  return [
    text_of(entry, f"{key}[{index}]" if several else key, where)
    for index, entry in enumerate(entries)
  ]


def text_of(value: Any, key: str, where: str) -> str:
  """A text or a number as a text; UserError naming `key` for anything else, and for no text."""
  if isinstance(value, dict) and "text" in value:
    return text_of(value["text"], f"{key}.text", where)
  if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
    shown = json.dumps(value)[:40]
    raise UserError(f"{where}: {key} is {shown}, no text; write it in quotes, or remove the row")
  if not (text := str(value)).strip():
    raise UserError(f"{where}: {key} is empty; fill it in or remove the row")
  return text
