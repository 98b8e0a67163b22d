"""Questions with the passages retrieved for them, in the format of Fusion-in-Decoder.

A row is `{"question", "answers", "ctxs": [{"id"?, "title", "text", "score"?, "hasanswer"?}]}`
(Izacard and Grave 2021); a file has one row a line, gzipped or not. DPR's own files are one array
of JSON, with scores as strings and `has_answer`; they can be read too, but only at once.
"""

import gzip
import io
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NotRequired, TypedDict

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file
from frozen_jax.core.json_row import accepted_texts, array_rows, is_array, parse_row, with_id
from frozen_jax.core.reading import is_gzip, open_unpacked
from frozen_jax.core.text_file import numbered_lines, read_text
from frozen_jax.core.user_path import user_path


class Context(TypedDict):
  """A retrieved passage; `score`: the retriever's; `hasanswer`: whether it contains an answer."""

  title: str
  text: str
  id: NotRequired[str]
  score: NotRequired[float]
  hasanswer: NotRequired[bool]


class FidRow(TypedDict):
  """A question, its accepted answers, and passages, best first; other keys are left unchanged."""

  question: str
  answers: list[str]
  ctxs: list[Context]


def read_rows(path: str | pathlib.Path) -> Iterator[FidRow]:
  """The rows of a file one after another: JSON lines, or one array, which is read at once.

  Raises:
    UserError: no such file, a damaged one, no rows in it; a malformed row (with its location).
  """
  path, empty = user_path(path), True
  for where, row in _rows(path):
    empty = False
    yield _validated(parse_row(row, where), where)
  if empty:
    raise UserError(f"{path} holds no questions; give a file with one JSON object a line")


def write_rows(path: str | pathlib.Path, rows: Iterable[FidRow]) -> None:
  """Writes JSON lines, gzipped where the name ends in .gz; a failure leaves no partial file.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path)
  with atomic_file(path) as temporary, temporary.open("wb") as raw:
    # Without name and time in the gzip header, equal rows give equal files.
    binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_gzip(path.name) else raw
    with binary, io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as file:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(path: pathlib.Path) -> Iterator[tuple[str, bytes | str]]:
  """(where it is, its JSON) of each row."""
  with open_unpacked(path) as file:
    array = is_array(file.read(4096))
  if array:
    yield from array_rows(read_text(path), str(path))
  else:
    yield from ((f"{path}, line {number}", line) for number, _, line in numbered_lines(path))


def _validated(row: dict[str, Any], where: str) -> FidRow:
  if not isinstance(row.get("question"), str) or not row["question"].strip():
    raise UserError(f'{where}: "question" must be a text; fix that row')
  answers, passages = row.get("answers", []), row.get("ctxs")
  if answers != []:
    answers = accepted_texts(answers, "answers", where)
  if not isinstance(passages, list):
    raise UserError(f'{where}: "ctxs" must be a list of passages; fix that row')
  contexts = [
    _context(passage, f"{where}, passage {number}")
    for number, passage in enumerate(passages, start=1)
  ]
  return {**row, "answers": answers, "ctxs": contexts}  # type: ignore[typeddict-item]


def _context(passage: Any, where: str) -> Context:
  if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
    raise UserError(f'{where}: a passage is {{"title", "text"}}, texts; fix that row')
  context = with_id(dict(passage), where)
  context["title"] = context.get("title") or ""
  if "id" in context:
    context["id"] = str(context["id"])
  if "has_answer" in context:
    context["hasanswer"] = context.pop("has_answer")
  try:
    if "score" in context:
      context["score"] = float(context["score"])
  except (TypeError, ValueError) as error:
    raise UserError(f'{where}: "score" is {context["score"]!r}, no number; fix it') from error
  return context  # type: ignore[return-value]
