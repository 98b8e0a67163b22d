"""Corpora of passages on disk, of any size, with access by position and by id.

Three formats can be read, gzipped or not: JSON lines `{"id", "title", "text"}`, an array of these
(.json), and a table with columns of these names (.tsv, .csv), such as DPR's (Karpukhin et al. 2020,
psgs_w100.tsv). When a file is opened for the first time, it is read once: every row is checked, and
an index is written to the user's cache directory: the offset of each row, a hash of each id, and
the corpus' fingerprint. A gzip file and an array have no random access, so they are also written
there as plain rows. File and index are memory-mapped; the index takes 24 bytes a passage.
"""

import array
import dataclasses
import functools
import hashlib
import json
import mmap
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file, atomic_folder
from frozen_jax.core.json_row import array_rows, is_array, parse_row
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.reading import gunzip, is_gzip, local_file, open_unpacked, user_read_errors
from frozen_jax.core.tables import (
  check_width,
  delimiter_of,
  header_of,
  record_fields,
  table_records,
)
from frozen_jax.core.text_file import numbered_lines, read_text
from frozen_jax.core.user_path import user_path

_FORMAT = "2"  # of the index; part of its folder's name
_COLUMNS = ("id", "title", "text")  # of a table, in any order; the title may be missing
_DESCRIPTION, _STARTS, _HASHES, _ORDER = "corpus.json", "starts.npy", "hashes.npy", "order.npy"
_UNPACKED, _ARRAY = "rows", "array"


class Passage(NamedTuple):
  """A passage: its id (unique in the corpus), the title of its article ("" for none), its text."""

  id: str
  title: str
  text: str

  def joined(self, separator: str = " ") -> str:
    """Title and text as one string, as retrievers read it."""
    return f"{self.title}{separator}{self.text}" if self.title else self.text


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus(Sequence[Passage]):
  """The passages of a file, by position.

  path: of the file. fingerprint: 64 hex digits, a hash of all ids, titles and texts in their order;
  it does not depend on the file's format.
  """

  path: pathlib.Path
  fingerprint: str
  _rows: mmap.mmap
  _parse: Callable[[bytes, str], Passage]
  _starts: np.ndarray  # int64 [N]
  _hashes: np.ndarray  # uint64 [N], sorted
  _order: np.ndarray  # int64 [N], the position of the passage of each of `_hashes`

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, position: int) -> Passage:  # type: ignore[override]
    if not 0 <= position < len(self):
      raise IndexError(position)
    start = int(self._starts[position])
    end = int(self._starts[position + 1]) if position + 1 < len(self) else None
    return self._parse(self._rows[start:end], f"{self.path}, passage {position}")

  def __iter__(self) -> Iterator[Passage]:
    return (self[position] for position in range(len(self)))

  def position(self, id: str) -> int:
    """The position of the passage with this id.

    Raises:
      UserError: no passage has it.
    """
    id_hash = _hash(id)
    index = int(np.searchsorted(self._hashes, id_hash))
    while index < len(self) and self._hashes[index] == id_hash:
      position = int(self._order[index])
      if self[position].id == id:
        return position
      index += 1
    raise UserError(f"{self.path} has no passage of the id {id!r}; is it another corpus?")


def open_corpus(path: str | pathlib.Path, progress: bool = True) -> Corpus:
  """Opens a corpus; the first time this reads the whole file once.

  Args:
    path: JSON lines, an array of JSON, or a table (.tsv, .csv); or one of these gzipped (.gz).
    progress: whether a progress bar is shown on standard error meanwhile.

  Raises:
    UserError: no such file, a damaged one, no passages in it; a malformed row, or an id that an
      earlier row has (with the line's number).
  """
  given = user_path(path)
  with user_read_errors(given):
    path = local_file(given, progress)
  index = _index_folder(path)
  if not (index / _DESCRIPTION).is_file():
    with atomic_folder(index) as folder:
      _write_index(path, folder, progress)
  description = json.loads((index / _DESCRIPTION).read_text())
  stored = next((one for name in (_UNPACKED, _ARRAY) if (one := index / name).exists()), path)
  with stored.open("rb") as file:
    rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  arrays = [np.load(index / name, mmap_mode="r") for name in (_STARTS, _HASHES, _ORDER)]
  return Corpus(path, description["fingerprint"], rows, _parser(path, stored), *arrays)


def passages_fingerprint(passages: Iterable[Passage]) -> str:
  """`Corpus.fingerprint` of a corpus of these passages."""
  digest = hashlib.sha256()
  for passage in passages:
    digest.update(_frame(passage))
  return digest.hexdigest()


def write_corpus(path: str | pathlib.Path, passages: Iterable[Passage]) -> None:
  """Writes passages as JSON lines; a failure leaves no partial file.

  Raises:
    UserError: the file cannot be written.
  """
  with atomic_file(pathlib.Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
    for passage in passages:
      file.write(json.dumps(passage._asdict(), ensure_ascii=False) + "\n")


def _index_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder for the index of this file; another one after the file has changed."""
  try:
    real, stat = path.resolve(), path.stat()
  except OSError as error:
    raise UserError(f"there is no file {path}; check the path") from error
  parts = [_FORMAT, str(real), str(stat.st_size), str(stat.st_mtime_ns)]
  return cache_dir() / "corpora" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _write_index(path: pathlib.Path, folder: pathlib.Path, progress: bool) -> None:
  """Reads the file once, checks its rows and writes the index."""
  rows = _plain_rows(path, folder)
  starts, numbers, hashes = array.array("q"), array.array("q"), array.array("Q")
  digest = hashlib.sha256()
  with ProgressBar(
    desc=f"read {path.name}", unit=" passages", disable=not progress, delay=2
  ) as bar:
    for number, start, passage in _passages(path, rows):
      starts.append(start)
      numbers.append(number)
      hashes.append(_hash(passage.id))
      digest.update(_frame(passage))
      bar.update()
  if not starts:
    raise UserError(f"{path} holds no passages; give a file with one a line")
  id_hashes = np.frombuffer(hashes, np.uint64)
  order = np.argsort(id_hashes, kind="stable")
  sorted_hashes = id_hashes[order]
  equal = np.flatnonzero(sorted_hashes[1:] == sorted_hashes[:-1])  # to the next one
  sorted_numbers = np.frombuffer(numbers, np.int64)[order]
  suspects = {int(sorted_numbers[index + step]) for index in equal for step in (0, 1)}
  _check_unique_ids(path, rows, suspects)
  np.save(folder / _STARTS, np.frombuffer(starts, np.int64))
  np.save(folder / _HASHES, sorted_hashes)
  np.save(folder / _ORDER, order)
  description = {"path": str(path), "passages": len(starts), "fingerprint": digest.hexdigest()}
  (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def _plain_rows(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """The file itself, or where it is gzipped or an array, its rows written to `folder`."""
  with open_unpacked(path) as file:
    array = is_array(file.read(4096)) and not delimiter_of(path.name)
  if not array and not is_gzip(path.name):
    return path
  rows = folder / (_ARRAY if array else _UNPACKED)
  if array:
    with rows.open("w", encoding="utf-8", newline="\n") as out:
      for where, row in array_rows(read_text(path), str(path)):
        out.write(json.dumps(_from_json(row, where)._asdict()) + "\n")
  else:
    gunzip(path, rows)
  return rows


def _passages(path: pathlib.Path, rows: pathlib.Path) -> Iterator[tuple[int, int, Passage]]:
  """(number of its line, its offset, passage) of each row of `rows`; `path` is for messages."""
  if not delimiter_of(path.name):
    for number, start, line in numbered_lines(rows):
      yield number, start, _from_json(line, f"{path}, line {number}")
    return
  columns = _columns(path, rows)
  with rows.open("rb") as file:
    records = table_records(file, str(path))
    next(records)  # the header
    for number, start, fields in records:
      yield number, start, _from_fields(fields, columns, f"{path}, line {number}")


def _columns(path: pathlib.Path, rows: pathlib.Path) -> list[str]:
  """The columns of a table; UserError unless these are those of passages."""
  with rows.open("rb") as file:
    if not file.read(1):
      raise UserError(f"{path} holds no passages; give a file with one a line")
    file.seek(0)
    columns = header_of(file, str(path))
  if not {"id", "text"} <= set(columns):
    raise UserError(
      f"{path}, line 1: the header of a table must name id, text and title; it is"
      f" {', '.join(columns)[:100]}"
    )
  return columns


def _check_unique_ids(path: pathlib.Path, rows: pathlib.Path, suspects: set[int]) -> None:
  """Raises UserError where two of these lines, whose ids have equal hashes, have the same id."""
  line_of: dict[str, int] = {}
  unit = "row" if rows.name == _ARRAY else "line"
  for number, _, passage in _passages(path, rows) if suspects else ():
    if number in suspects:
      if passage.id in line_of:
        raise UserError(
          f"{path}, {unit} {number}: {unit} {line_of[passage.id]} has the id {passage.id!r} too;"
          " give each passage its own"
        )
      line_of[passage.id] = number


def _hash(id: str) -> int:
  return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _frame(passage: Passage) -> bytes:
  """A passage's bytes with the lengths of its three fields, so that no two passages are alike."""
  fields = [field.encode() for field in passage]
  return b"%d %d %d\n" % tuple(map(len, fields)) + b"".join(fields)


def _parser(path: pathlib.Path, rows: pathlib.Path) -> Callable[[bytes, str], Passage]:
  """From the bytes of a row, and where it is, to its passage."""
  if not (delimiter := delimiter_of(path.name)):
    return _from_json
  return functools.partial(_from_table, delimiter=delimiter, columns=_columns(path, rows))


def _from_json(line: bytes | str, where: str) -> Passage:
  row = parse_row(line, where)
  id, title, text = row.get("id"), row.get("title") or "", row.get("text")
  id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
  if not isinstance(id, str) or not isinstance(title, str) or not isinstance(text, str):
    raise UserError(f'{where}: a passage is {{"id", "title", "text"}}, strings; fix that line')
  return _validated(Passage(id, title, text), where)


def _from_table(line: bytes, where: str, delimiter: str, columns: Sequence[str]) -> Passage:
  return _from_fields(record_fields(line, delimiter, where), columns, where)


def _from_fields(fields: Sequence[str], columns: Sequence[str], where: str) -> Passage:
  check_width(fields, columns, where)
  row = dict(zip(columns, fields, strict=True))
  return _validated(Passage(*(row.get(name, "") for name in _COLUMNS)), where)


def _validated(passage: Passage, where: str) -> Passage:
  for name in ("id", "text"):
    if not getattr(passage, name).strip():
      raise UserError(f"{where}: a passage whose {name} is empty; fix or remove that line")
  return passage
