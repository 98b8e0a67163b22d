"""Where examples come from: built-in data sets, prepared tfds data sets and JSON-lines files.

An example is a plain dict of one of three forms, other keys are carried along:

  {"question": str, "answers": [str, ...]}   the first answer is the one that is trained on
  {"input": str, "target": str}              the input stands as it is
  {"text": str}                              for language modelling
"""

import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.data.json_lines import JsonLines, parse_line
from frozen_jax.data.rows import Rows

Example = dict[str, Any]

BUILTIN = (
  "world_facts/train",
  "world_facts/validation",
  "world_facts/test",
  "plain_english/train",
  "plain_english/validation",
)
_CHECKED_AT_ONCE = 1000  # rows of a file
_FORMS = '{"question", "answers"}, {"input", "target"} or {"text"}'


class Source:
  """Examples by position. `name` says for messages where they come from."""

  def __init__(self, rows: Rows[Any], name: str, fields: Mapping[str, str], targets: bool):
    self.name = name
    self._rows, self._fields, self._targets = rows, fields, targets

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    where = getattr(self._rows, "where", f"{self.name}, row {{}}".format)(index)
    row = renamed(self._rows[index], self._fields, where)
    example = checked(row, where, self._targets)
    example.setdefault("id", str(index))
    return example

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def __getstate__(self) -> object:
    raise TypeError("a Source holds open files; open it anew in the other process")


def open_source(
  spec: str, fields: Mapping[str, str] | Sequence[str] | None = None, targets: bool = True
) -> Source:
  """Opens examples by position.

  `spec`: a built-in name with its split (BUILTIN), "tfds:NAME/SPLIT", or the path of a .jsonl or
  .jsonl.gz file. `fields`: where a source has names of its own, ("question=query",
  "answers=answer.text") or the same as a dict, ours to theirs. With `targets=False` rows without
  answers or target will do (to predict). Raises UserError for anything that cannot be had: an
  unknown name, no such file, an empty file, a malformed line, a row of none of the three forms
  (looked at here: a file's first 1,000 rows, else the first row; the others when they are read).
  """
  if spec.startswith("tfds:"):
    rows = _tfds_rows(spec)
  elif spec.endswith((".jsonl", ".jsonl.gz")) or pathlib.Path(spec).is_file():
    rows = JsonLines(spec)
  elif spec in BUILTIN:
    from frozen_jax.data.builders.prepare import open_builtin  # tfds is imported where needed only

    rows = open_builtin(*spec.split("/"))
  else:
    raise UserError(
      f"unknown data {spec!r}; give one of {', '.join(BUILTIN)}, or tfds:NAME/SPLIT, or the path"
      " of a .jsonl or .jsonl.gz file"
    )
  if not len(rows):
    raise UserError(f"{spec} holds no examples; choose another split")
  source = Source(rows, spec, _mapping(fields), targets)
  for index in range(min(len(source), _CHECKED_AT_ONCE) if isinstance(rows, JsonLines) else 1):
    source[index]
  return source


def open_questions(
  spec: str, fields: Mapping[str, str] | Sequence[str] | None = None
) -> Rows[Example]:
  """Questions to predict: "-" for standard input, a text file with a question (or a JSON object) a
  line, or whatever `open_source` takes. Answers need not be there. UserErrors as `open_source`.
  """
  if spec == "-":
    return read_questions(sys.stdin, "standard input")
  is_data = spec in BUILTIN or spec.startswith("tfds:") or spec.endswith((".jsonl", ".jsonl.gz"))
  if is_data:
    return open_source(spec, fields, targets=False)
  try:
    return read_questions(pathlib.Path(spec).read_text("utf8").splitlines(), spec)
  except FileNotFoundError as error:
    raise UserError(f"there is no file {spec}; check the path, or give - to type") from error
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"cannot read {spec} as text; give a text file with a question a line"
    ) from error


def read_questions(lines: Iterable[str], name: str) -> list[Example]:
  """Questions to predict from lines of text: each a JSON object of a known form, or a question.

  A line that starts with `{` is JSON ({"question"}, {"input"} or with answers too), any other is a
  question as it stands; blank lines are passed over. Examples have an "id": their own, else the
  number of the line. Raises UserError naming `name` and the line for malformed ones, and where
  there is none at all.
  """
  examples = []
  for number, line in enumerate(lines, start=1):
    text, where = line.strip(), f"{name}, line {number}"
    if not text:
      continue
    row = parse_line(text, where) if text.startswith("{") else {"question": text}
    example = checked(row, where, targets=False)
    example.setdefault("id", str(number))
    examples.append(example)
  if not examples:
    raise UserError(f"{name} holds no questions; give one a line")
  return examples


def renamed(row: Mapping[str, Any], fields: Mapping[str, str], where: str) -> dict[str, Any]:
  """The row as plain Python values, with `fields` (ours -> theirs, dots lead inwards) added."""
  plain = {key: _plain(value) for key, value in row.items()}
  for ours, theirs in fields.items():
    value: Any = plain
    for part in theirs.split("."):
      if not isinstance(value, Mapping) or part not in value:
        raise UserError(f"{where}: no field {theirs!r}; there are: {', '.join(sorted(plain))}")
      value = value[part]
    plain[ours] = value
  return plain


def checked(row: dict[str, Any], where: str, targets: bool = True) -> Example:
  """The row as an example of one of the three forms; UserError naming `where` if it is none."""
  if isinstance(row.get("answers"), str):
    row = {**row, "answers": [row["answers"]]}
  if isinstance(row.get("question"), str) and (_are_texts(row.get("answers")) or not targets):
    if row["question"].strip():
      return row
    raise UserError(f"{where}: the question is empty; fill it in or remove the line")
  if isinstance(row.get("input"), str) and (isinstance(row.get("target"), str) or not targets):
    if row["input"].strip():
      return row
    raise UserError(f"{where}: the input is empty; fill it in or remove the line")
  if isinstance(row.get("text"), str):
    return row
  raise UserError(
    f"{where}: none of the forms {_FORMS}; its keys are {', '.join(sorted(row)) or 'none'}; name"
    " its fields with config.data.fields"
  )


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _mapping(fields: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
  if fields is None or isinstance(fields, Mapping):
    return dict(fields or {})
  for entry in fields:
    if entry.count("=") != 1 or not all(entry.split("=")):
      raise UserError(f"field mapping {entry!r} is not of the form ours=theirs")
  return dict(entry.split("=") for entry in fields)


def _plain(value: Any) -> Any:
  """tfds' bytes and arrays as text, numbers and lists."""
  if isinstance(value, bytes):
    return value.decode("utf8", errors="replace")
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if isinstance(value, Mapping):
    return {key: _plain(entry) for key, entry in value.items()}
  return value


def _tfds_rows(spec: str) -> Rows[Any]:
  """A tensorflow-datasets split, prepared as array_record if it is not yet."""
  name, _, split = spec.removeprefix("tfds:").rpartition("/")
  if not name or not split:
    raise UserError(f"{spec!r} is not of the form tfds:NAME/SPLIT, such as tfds:ag_news/train")
  import tensorflow_datasets as tfds

  folder = os.environ.get("TFDS_DATA_DIR")
  try:
    return tfds.data_source(
      name, split=split, data_dir=folder, builder_kwargs={"file_format": "array_record"}
    )
  except Exception as error:  # tfds raises nearly anything: unknown name, no network, no split
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    raise UserError(
      f"tensorflow-datasets cannot give {name!r}, split {split!r} ({reason}); check the name, or"
      " prepare it as array_record and let TFDS_DATA_DIR name its folder"
    ) from error
