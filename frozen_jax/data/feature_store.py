"""A cache of the states that a frozen model gives a text, so that no text is read by it twice.

Without trained tokens before the text a frozen encoder's states are constant (docs/paper.md, 2), as
are those of a recursive LM's first pass. They are cached: the last used in memory, all of them on
disk, as array_record files ("segments") in a folder that several processes may share. A segment is
written under a temporary name and renamed when it is complete; its last record lists the keys of
the others. The folder may be deleted at any time, and damaged segments are skipped with a warning
and computed again.

A row's key is a hash of the text's token ids, which are all that the model reads of a text.
(Texts with equal ids, such as two that are truncated to the same beginning, share a row.)
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.files import ABANDONED_SECONDS

_LOG = logging.getLogger(__name__)

MEMORY_BYTES = 2**30
DISK_BYTES = 2**34

_FORMAT = "1"  # of the files; part of the folder's name
_KEY_BYTES = 16
_SEGMENT_BYTES = 2**26  # rows are buffered in memory until they fill a segment
_SUFFIX = ".array_record"
_UNFINISHED = ".unfinished"
# States do not compress; with groups of one record, records can be read one by one.
_WRITER_OPTIONS, _READER_OPTIONS = "group_size:1,uncompressed", "readahead_buffer_size:0"

TextKey = bytes


def text_key(ids: np.ndarray | Sequence[int]) -> TextKey:
  """The key of a text, given its token ids (without padding)."""
  return hashlib.blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=_KEY_BYTES).digest()


def tokenizer_hash(tokenizer: Any) -> str:
  """A hash (hex) of what a tokenizer does with a text, without padding and truncation."""
  if tokenizer is None:
    return ""
  if tokenizer.is_fast:
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):
      settings.pop(name, None)
  else:  # one that is code alone, such as ByT5's
    settings = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def store_folder(
  model: str, dtype: Any, kind: str = "encoder_states", root: pathlib.Path | None = None
) -> pathlib.Path:
  """The folder of a model's states: one for each model and dtype.

  model: names all that a text's states depend on, weights and settings
  (`FrozenEncoder.texts_fingerprint`). kind: of states, the folder of these folders. root: None is
  the user's cache directory.
  """
  parts = [_FORMAT, model, np.dtype(dtype).name]
  name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
  return (cache_dir() if root is None else root) / kind / name


class FeatureStore:
  """States by key: each float [X, De] in one dtype, for X real positions of a text.

  `width` is De. Rows that are not on disk yet are lost with the process; `flush` writes them. Only
  one thread may use a store.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    width: int,
    dtype: Any,
    memory_bytes: int = MEMORY_BYTES,
    disk_bytes: int = DISK_BYTES,
  ):
    """Opens the states in a folder, which need not exist.

    Args:
      folder: of this model and dtype (see `store_folder`).
      width: De.
      dtype: of the states: float32, or bfloat16 of ml_dtypes.
      memory_bytes: for the rows used last; besides, up to 64 MiB wait to be written.
      disk_bytes: the maximal size of the folder; when it is full, nothing is added. 0: no disk.
    """
    self._folder, self.width, self.dtype = folder, width, np.dtype(dtype)
    self._memory: collections.OrderedDict[TextKey, np.ndarray] = collections.OrderedDict()
    self._memory_bytes, self._memory_used = memory_bytes, 0
    self._unwritten: dict[TextKey, np.ndarray] = {}  # not on disk yet
    self._unwritten_bytes = 0
    self._locations: dict[TextKey, tuple[pathlib.Path, int]] = {}  # segment, index in it
    self._segments_read: set[str] = set()  # file names, damaged ones too
    self._disk_bytes, self._disk_used = disk_bytes, 0
    self._reading, self._writing = disk_bytes > 0, disk_bytes > 0
    if self._reading:
      self._remove_abandoned()
      self._read_keys()

  def __len__(self) -> int:
    """How many rows are stored."""
    return len(self._memory.keys() | self._unwritten.keys() | self._locations.keys())

  def find(self, keys: Sequence[TextKey]) -> list[np.ndarray | None]:
    """The states of each key, [X, De] read-only, or None where they are not stored."""
    rows = {key: row for key in keys if (row := self._from_memory(key)) is not None}
    rows |= self._from_disk([key for key in dict.fromkeys(keys) if key not in rows])
    return [rows.get(key) for key in keys]

  def add(self, key: TextKey, states: np.ndarray) -> None:
    """Stores states [X, De] under a key; a full segment is written at once."""
    if states.ndim != 2 or states.shape[1] != self.width or states.dtype != self.dtype:
      expected = f"{self.dtype} [X, {self.width}]"
      raise ValueError(
        f"states are {states.dtype} {list(states.shape)}, the store's are {expected}"
      )
    row = np.array(states)  # a view would keep its whole batch in memory
    row.flags.writeable = False
    self._remember(key, row)
    if self._writing and key not in self._unwritten and key not in self._locations:
      self._unwritten[key] = row
      self._unwritten_bytes += row.nbytes
      if self._unwritten_bytes >= _SEGMENT_BYTES:
        self.flush()

  def flush(self) -> None:
    """Writes new rows to disk, and finds those that other processes have written since.

    If that fails (no space, no permission) or the folder is full, a warning is logged, and later
    rows are stored in memory only.
    """
    if self._writing and self._unwritten:
      self._write()
    if self._reading:
      self._read_keys()

  def _from_memory(self, key: TextKey) -> np.ndarray | None:
    row = self._memory.get(key)
    if row is None:
      return self._unwritten.get(key)
    self._memory.move_to_end(key)
    return row

  def _remember(self, key: TextKey, row: np.ndarray) -> None:
    if (old := self._memory.pop(key, None)) is not None:
      self._memory_used -= old.nbytes
    self._memory[key] = row
    self._memory_used += row.nbytes
    while self._memory_used > self._memory_bytes:
      _, oldest = self._memory.popitem(last=False)
      self._memory_used -= oldest.nbytes

  def _from_disk(self, keys: Sequence[TextKey]) -> dict[TextKey, np.ndarray]:
    """Reads rows, segment by segment; damaged segments are not used again."""
    by_segment: dict[pathlib.Path, list[tuple[TextKey, int]]] = {}
    for key in keys:
      if key in self._locations:
        path, index = self._locations[key]
        by_segment.setdefault(path, []).append((key, index))
    rows_by_key: dict[TextKey, np.ndarray] = {}
    for path, entries in by_segment.items():
      try:
        with _open_segment(path) as reader:
          rows = [self._decode_row(data) for data in reader.read([index for _, index in entries])]
      except (RuntimeError, ValueError, OSError) as error:
        self._warn_damaged(path, error)
        self._locations = {
          key: location for key, location in self._locations.items() if location[0] != path
        }
        continue
      for (key, _), row in zip(entries, rows, strict=True):
        rows_by_key[key] = row
        self._remember(key, row)
    return rows_by_key

  def _decode_row(self, data: bytes) -> np.ndarray:
    return np.frombuffer(data, self.dtype).reshape(-1, self.width)

  def _write(self) -> None:
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
      unfinished = self._folder / (name + _UNFINISHED)
      try:
        _write_segment(unfinished, self._unwritten)
        size = unfinished.stat().st_size
        full = self._disk_used + size > self._disk_bytes
        if not full:
          os.replace(unfinished, self._folder / (name + _SUFFIX))
      finally:
        unfinished.unlink(missing_ok=True)
      if full:
        limit = f"{self._disk_bytes / 1e9:.1f} GB"
        self._stop_writing(f"{self._folder} has reached its {limit}; give it more, or delete it")
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError for both
      reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
      self._stop_writing(f"cannot write into {self._folder} ({reason}); free some space")
    self._unwritten, self._unwritten_bytes = {}, 0

  def _stop_writing(self, reason: str) -> None:
    self._writing = False
    _LOG.warning("encoder states stay in memory only from now on: %s", reason)

  def _read_keys(self) -> None:
    """Reads the keys of segments that this object has not read yet."""
    try:
      paths = sorted(self._folder.glob(f"*{_SUFFIX}"))
    except OSError:  # it cannot be listed: writing will report why
      return
    for path in paths:
      if path.name in self._segments_read:
        continue
      self._segments_read.add(path.name)
      try:
        with _open_segment(path) as reader:
          keys = _keys(reader)
        self._disk_used += path.stat().st_size
      except (RuntimeError, ValueError, OSError) as error:
        self._warn_damaged(path, error)
        continue
      for index, key in enumerate(keys):
        self._locations.setdefault(key, (path, index))

  def _warn_damaged(self, path: pathlib.Path, error: Exception) -> None:
    reason = str(error).partition(";")[0]
    _LOG.warning(
      "%s is damaged (%s); its encoder states are computed again: delete it", path, reason
    )

  def _remove_abandoned(self) -> None:
    """Deletes unfinished files that killed writers have left."""
    for path in self._folder.glob(f"*{_UNFINISHED}"):
      try:
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
          path.unlink()
      except OSError:  # another process was faster
        continue


@contextlib.contextmanager
def _open_segment(path: pathlib.Path) -> Iterator[ArrayRecordReader]:
  """A segment to read from, then closed: there may be more of them than a process may open."""
  reader = ArrayRecordReader(str(path), _READER_OPTIONS)
  try:
    yield reader
  finally:
    reader.close()


def _write_segment(path: pathlib.Path, rows: dict[TextKey, np.ndarray]) -> None:
  """Writes the rows, then their keys as the last record; flushed to disk on return."""
  writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
  try:
    for row in rows.values():
      writer.write(row.tobytes())
    writer.write(b"".join(rows))
  finally:
    writer.close()
  with path.open("rb") as file:
    os.fsync(file.fileno())


def _keys(reader: ArrayRecordReader) -> list[TextKey]:
  """The keys of a segment's rows; ValueError for a damaged segment."""
  count = reader.num_records() - 1
  if count < 1:
    raise ValueError("it has no end")
  data = reader.read([count])[0]
  keys = [data[start : start + _KEY_BYTES] for start in range(0, len(data), _KEY_BYTES)]
  if len(data) != count * _KEY_BYTES:
    raise ValueError("it has another number of rows than keys")
  return keys
