"""Corpora of passages on disk, of any size, with access by position and by id.

Two formats can be read, gzipped or not: JSON lines `{"id", "title", "text"}`, and the table of DPR
(Karpukhin et al. 2020, psgs_w100.tsv: a header, then id, text and title between tabs, quoted as in
CSV). When a file is opened for the first time, it is read once: every row is checked, and an index
is written to the user's cache directory: the offset of each row, a hash of each id, and the
corpus' fingerprint. A gzip file has no random access, so it is also unpacked there. File and index
are memory-mapped; the index takes 24 bytes a passage.
"""

import array
import csv
import dataclasses
import hashlib
import json
import mmap
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file, atomic_folder, numbered_lines, unpack
from frozen_jax.core.json_row import parse_row

_FORMAT = "1"  # of the index; part of its folder's name
_TSV_HEADER = ["id", "text", "title"]
_DESCRIPTION, _STARTS, _HASHES, _ORDER = "corpus.json", "starts.npy", "hashes.npy", "order.npy"
_UNPACKED = "rows"


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
    end = self._rows.find(b"\n", start)
    where = f"{self.path}, passage {position}"
    return self._parse(self._rows[start : end if end >= 0 else None], where)

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
    path: JSON lines, or DPR's table (a name that ends in .tsv), or either gzipped (.gz).
    progress: whether a progress bar is shown on standard error meanwhile.

  Raises:
    UserError: no such file, a damaged one, no passages in it; a malformed row, or an id that an
      earlier row has (with the line's number).
  """
  path = pathlib.Path(path)
  index = _index_folder(path)
  if not (index / _DESCRIPTION).is_file():
    with atomic_folder(index) as folder:
      _write_index(path, folder, progress)
  unpacked = index / _UNPACKED
  description = json.loads((index / _DESCRIPTION).read_text())
  with (unpacked if unpacked.exists() else path).open("rb") as file:
    rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  arrays = [np.load(index / name, mmap_mode="r") for name in (_STARTS, _HASHES, _ORDER)]
  return Corpus(path, description["fingerprint"], rows, _parser(path), *arrays)


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
  parse, rows = _parser(path), path
  if path.name.endswith(".gz"):
    rows = folder / _UNPACKED
    unpack(path, rows)
  starts, numbers, hashes = array.array("q"), array.array("q"), array.array("Q")
  digest = hashlib.sha256()
  with tqdm(desc=f"read {path.name}", unit=" passages", disable=not progress, delay=2) as bar:
    for number, start, line in _passage_lines(path, rows):
      passage = parse(line, f"{path}, line {number}")
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


def _passage_lines(path: pathlib.Path, rows: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
  """The numbered lines of `rows` (the file itself, or unpacked), without a table's header."""
  lines = numbered_lines(rows)
  if _is_table(path):
    number, _, line = next(lines, (1, 0, b""))
    if line.decode("utf-8", "replace").strip("\r\n").split("\t") != _TSV_HEADER:
      header = "\\t".join(_TSV_HEADER)
      raise UserError(f"{path}, line {number}: the header of a table must be {header}; add it")
  yield from lines


def _check_unique_ids(path: pathlib.Path, rows: pathlib.Path, suspects: set[int]) -> None:
  """Raises UserError where two of these lines, whose ids have equal hashes, have the same id."""
  line_of: dict[str, int] = {}
  for number, _, line in _passage_lines(path, rows) if suspects else ():
    if number in suspects:
      id = _parser(path)(line, f"{path}, line {number}").id
      if id in line_of:
        raise UserError(
          f"{path}, line {number}: line {line_of[id]} has the id {id!r} too; give each passage"
          " its own"
        )
      line_of[id] = number


def _hash(id: str) -> int:
  return int.from_bytes(hashlib.blake2b(_bytes(id), digest_size=8).digest(), "little")


def _frame(passage: Passage) -> bytes:
  """A passage's bytes with the lengths of its three fields, so that no two passages are alike."""
  fields = [_bytes(field) for field in passage]
  return b"%d %d %d\n" % tuple(map(len, fields)) + b"".join(fields)


def _bytes(text: str) -> bytes:
  return text.encode("utf-8", "surrogatepass")  # JSON may contain lone surrogates


def _is_table(path: pathlib.Path) -> bool:
  return path.name.removesuffix(".gz").endswith(".tsv")


def _parser(path: pathlib.Path) -> Callable[[bytes, str], Passage]:
  return _from_table if _is_table(path) else _from_json


def _from_json(line: bytes, where: str) -> Passage:
  row = parse_row(line, where)
  id, title, text = row.get("id"), row.get("title") or "", row.get("text")
  id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
  if not isinstance(id, str) or not isinstance(title, str) or not isinstance(text, str):
    raise UserError(f'{where}: a passage is {{"id", "title", "text"}}, strings; fix that line')
  return _validated(Passage(id, title, text), where)


def _from_table(line: bytes, where: str) -> Passage:
  try:
    (fields,) = csv.reader([line.decode().strip("\r\n")], delimiter="\t", strict=True)
    id, text, title = fields
  except (ValueError, csv.Error) as error:  # not UTF-8, no three fields, an open quote
    expected = "id, text and title between tabs, quoted as in CSV"
    raise UserError(f"{where}: not {expected}; fix or remove that line") from error
  return _validated(Passage(id, title, text), where)


def _validated(passage: Passage, where: str) -> Passage:
  for name in ("id", "text"):
    if not getattr(passage, name).strip():
      raise UserError(f"{where}: a passage whose {name} is empty; fix or remove that line")
  return passage
