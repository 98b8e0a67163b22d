"""Splits of data set libraries, as rows by index: those that tensorflow-datasets has prepared as
array_record, and those of the package `datasets`, which is optional.

Either library is imported when a split is opened.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import on_terminal
from frozen_jax.core.stalled import waits_for
from frozen_jax.core.user_path import local_path
from frozen_jax.data.examples import Derived, to_python

_HASHED_TOGETHER = 8192  # rows
# Digests by the files that hold the rows: a run opens its data several times.
_DIGESTS: dict[tuple[object, ...], str] = {}


class PreparedRows:
  """The rows of a prepared split; `spec` names it.

  files_state  name, size and time of the files that hold the rows; (): not known

  A row has derived fields besides the stored ones: they do not change the digest, by which runs and
  artifacts of earlier versions know their data.
  """

  def __init__(
    self,
    rows: Any,
    spec: str,
    records: Callable[[], Iterable[bytes]],
    files: Iterable[str | os.PathLike[str]],
    derived: Derived | None = None,
  ):
    """Takes the opened rows.

    Args:
      rows: by index. spec: see the class.
      records: gives the contents of each row as bytes, equal for equal rows.
      files: those that hold the rows.
      derived: fields that are computed from the stored ones.
    """
    self._rows, self._spec, self._records, self._derived = rows, spec, records, derived or {}
    self.files_state = _state(files)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._with_derived(self._rows[index])

  def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
    return [self._with_derived(row) for row in self._rows.__getitems__(indices)]

  def _with_derived(self, row: dict[str, Any]) -> dict[str, Any]:
    if not self._derived:
      return row
    plain = to_python(row)
    return plain | {name: value_of(plain) for name, value_of in self._derived.items()}

  def describe(self, index: int) -> str:
    """Where a row is, for messages."""
    return f"{self._spec}, row {index}"

  @functools.cached_property
  def digest(self) -> str:
    """A hash (hex) of the rows in their order, whatever prepared them; 100,000 take a second."""
    key = (self._spec, *self.files_state)
    if self.files_state and key in _DIGESTS:
      return _DIGESTS[key]
    hashed, records = hashlib.sha256(), iter(self._records())
    while True:
      with waits_for(self._spec):
        record = next(records, None)
      if record is None:
        break
      hashed.update(len(record).to_bytes(8, "little"))
      hashed.update(record)
    return _DIGESTS.setdefault(key, hashed.hexdigest()) if self.files_state else hashed.hexdigest()


def open_builtin(spec: str) -> PreparedRows:
  """A built-in data set, "NAME/SPLIT"; it is prepared the first time.

  Raises:
    UserError: the user's cache cannot be written.
  """
  from frozen_jax.data.builders import prepare

  name, split = spec.split("/")
  builder = prepare.prepared_builder(name)
  derived = getattr(prepare.builder_class(name), "derived", None)
  return _array_record_rows(builder.as_data_source(split=split), spec, derived)


def open_tfds(spec: str) -> PreparedRows:
  """A data set of tensorflow-datasets, "tfds:NAME/SPLIT"; prepared as array_record if it is not.

  Raises:
    UserError: a malformed name, or tensorflow-datasets cannot provide it.
  """
  name, _, split = spec.removeprefix("tfds:").rpartition("/")
  if not name or not split:
    raise UserError(f"{spec!r} is not of the form tfds:NAME/SPLIT, such as tfds:ag_news/train")
  import tensorflow_datasets as tfds

  if name.split("/")[0] == "task_rows":  # importing the module registers the builder
    import frozen_jax.data.builders.task_rows  # noqa: F401

  if not on_terminal():
    tfds.disable_progress_bar()
  folder = os.environ.get("TFDS_DATA_DIR")
  try:
    rows = tfds.data_source(
      name, split=split, data_dir=folder, builder_kwargs={"file_format": "array_record"}
    )
  except Exception as error:  # tfds raises nearly anything: unknown name, no network, no split
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    raise UserError(
      f"tensorflow-datasets cannot give {name!r}, split {split!r} ({reason}); check the name, or"
      " prepare it as array_record and let TFDS_DATA_DIR name its folder"
    ) from error
  return _array_record_rows(rows, spec)


def open_hub(spec: str) -> PreparedRows:
  """A data set of the Hugging Face hub or a folder, "hf:NAME[:CONFIG]/SPLIT", by `datasets`.

  Raises:
    UserError: a malformed name, no package `datasets`, or it cannot provide the split.
  """
  name, _, split = spec.removeprefix("hf:").rpartition("/")
  name, _, config = name.partition(":")
  if not name or not split:
    raise UserError(f"{spec!r} is not of the form hf:NAME[:CONFIG]/SPLIT, such as hf:squad/train")
  try:
    import datasets
  except ImportError as error:
    raise UserError(f"{spec} needs the package datasets; pip install datasets") from error
  if not on_terminal():
    datasets.disable_progress_bars()
  try:
    rows = datasets.load_dataset(str(local_path(name)), config or None, split=split)
  except Exception as error:  # it raises nearly anything: unknown name, no network, no split
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    raise UserError(
      f"datasets cannot give {name!r}, split {split!r} ({reason}); check the name and the network"
    ) from error
  files = [file["filename"] for file in rows.cache_files]
  return PreparedRows(rows, spec, functools.partial(_arrow_records, rows), files)


def _array_record_rows(rows: Any, spec: str, derived: Derived | None = None) -> PreparedRows:
  """The rows of a data source of tensorflow-datasets."""
  folder, files = pathlib.Path(rows.dataset_info.data_dir), []
  with contextlib.suppress(OSError):  # a folder on a store
    files = sorted(folder.iterdir())
  return PreparedRows(rows, spec, functools.partial(_example_records, rows), files, derived)


def _example_records(rows: Any) -> Iterator[bytes]:
  """The tf.Examples as they are stored, but for the order of their fields, which is any."""
  from tensorflow_datasets.proto import tf_example_pb2

  for indices in _blocks(len(rows)):
    for record in rows.data_source.__getitems__(indices):
      yield tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def _arrow_records(rows: Any) -> Iterator[bytes]:
  """The rows as Python writes them, their fields in the order of the table."""
  table = rows.with_format("arrow")
  for indices in _blocks(len(rows)):
    for row in table[indices[0] : indices[-1] + 1].to_pylist():
      yield repr(row).encode()


def _blocks(count: int) -> Iterator[list[int]]:
  for start in range(0, count, _HASHED_TOGETHER):
    yield list(range(start, min(start + _HASHED_TOGETHER, count)))


def _state(files: Iterable[str | os.PathLike[str]]) -> tuple[tuple[str, int, int], ...]:
  """(name, size, time of the last change) of each file; () where one has none."""
  try:
    stats = [(os.fspath(file), os.stat(file)) for file in files]
  except OSError:
    return ()
  return tuple((name, one.st_size, one.st_mtime_ns) for name, one in stats)
