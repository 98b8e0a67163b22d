"""Reading files that may be gzipped, and writing files and folders atomically.

What is written has a temporary name until it is complete; then it is renamed.
"""

import contextlib
import glob
import gzip
import io
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from frozen_jax.core import interruption
from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError

ABANDONED_SECONDS = 24 * 3600  # after which a temporary file has lost its writer
_CHUNK_BYTES = 2**20

_unfinished: set[pathlib.Path] = set()  # temporary files and folders of this process


def remove_unfinished() -> None:
  """Deletes what this process has begun to write and not finished: for one that ends at once."""
  for temporary in list(_unfinished):
    _remove(temporary)


def gunzip(packed: pathlib.Path, to: pathlib.Path) -> None:
  """Writes the contents of a gzip file to another file; UserError as `user_read_errors`."""
  with open_unpacked(packed) as file, to.open("wb") as out:
    shutil.copyfileobj(file, out, _CHUNK_BYTES)


@contextlib.contextmanager
def open_unpacked(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
  """The file, unpacked while it is read if its name ends in .gz; UserError as below."""
  opener = gzip.open if path.name.endswith(".gz") else open
  with user_read_errors(path), opener(path, "rb") as file:
    yield file


@contextlib.contextmanager
def user_read_errors(path: pathlib.Path) -> Iterator[None]:
  """A context for reading a file: its errors are raised as UserErrors."""
  try:
    yield
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f"there is no file {path}; check the path") from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is a damaged or truncated gzip file; fetch it anew") from error
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error


@contextlib.contextmanager
def user_write_errors(path: pathlib.Path) -> Iterator[None]:
  """A context for writing a file or folder: its errors are raised as UserErrors."""
  try:
    yield
  except OSError as error:
    raise _write_error(path, error) from error


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes `data` to `path` atomically: a reader sees the old contents or the new.

  Raises:
    UserError: as `atomic_file`.
  """
  with atomic_file(path) as temporary:
    temporary.write_bytes(data)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON as `write_bytes` does."""
  write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON lines as `write_bytes` does."""
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  write_bytes(path, text.encode())


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary file alongside `path` to write to, renamed to `path` at the end.

  After an exception it is deleted.

  Raises:
    UserError: writing failed (no space, no permission); `path` is then as before.
  """
  try:
    with _temporary(path, _new_file) as temporary:
      yield temporary
      with temporary.open("rb") as file:
        os.fsync(file.fileno())
      temporary.chmod(0o644)  # mkstemp makes files that only their owner may read
      temporary.replace(path)
  except OSError as error:
    raise _write_error(path, error) from error


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder to fill, renamed to `path` at the end; after an exception it is deleted.

  Where another process has created `path` meanwhile, that one stays.

  Raises:
    UserError: writing failed (no space, no permission).
  """
  with temporary_folder(path) as temporary:
    yield temporary
    if not path.exists():
      with contextlib.suppress(FileExistsError):
        temporary.rename(path)


@contextlib.contextmanager
def filled_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder to fill, whose files at the end take their places in `path`, all of them.

  Other files in `path` stay; JSON files, which describe others, come last. After an exception
  `path` is as before. Raises UserError as `atomic_folder`.
  """
  with temporary_folder(path) as temporary:
    yield temporary
    with interruption.deferred():
      if not path.exists():
        temporary.rename(path)
        return
      files = [file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file()]
      for file in sorted(files, key=lambda one: (one.suffix == ".json", one)):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (temporary / file).replace(path / file)


@contextlib.contextmanager
def temporary_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder alongside `path` to fill and to rename; deleted where it was not renamed.

  Raises:
    UserError: writing failed (no space, no permission).
  """
  try:
    with _temporary(path, _new_folder) as temporary:
      yield temporary
  except OSError as error:
    raise _write_error(path, error) from error


@contextlib.contextmanager
def _temporary(
  path: pathlib.Path, make: Callable[[pathlib.Path, str], str]
) -> Iterator[pathlib.Path]:
  """A new file or folder alongside `path`, which is deleted at the end if it is still there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove_abandoned(path)
  with interruption.deferred():
    temporary = pathlib.Path(make(path.parent, f".{path.name}."))
    _unfinished.add(temporary)
  try:
    yield temporary
  finally:
    _remove(temporary)
    _unfinished.discard(temporary)


def _new_file(folder: pathlib.Path, prefix: str) -> str:
  handle, name = tempfile.mkstemp(dir=folder, prefix=prefix)
  os.close(handle)
  return name


def _new_folder(folder: pathlib.Path, prefix: str) -> str:
  name = tempfile.mkdtemp(dir=folder, prefix=prefix)
  os.chmod(name, 0o755)  # mkdtemp makes folders that only their owner may read
  return name


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def folder_bytes(folder: pathlib.Path) -> int:
  """Bytes of the files below a folder, in which files and folders may vanish meanwhile."""
  total = 0
  for path, _, names in os.walk(folder):  # unlike rglob, it copes with a folder that vanishes
    for name in names:
      with contextlib.suppress(OSError):
        total += os.stat(os.path.join(path, name)).st_size
  return total


def _remove_abandoned(path: pathlib.Path) -> None:
  """Deletes temporary files alongside `path` that killed processes have left."""
  for temporary in path.parent.glob(f".{glob.escape(path.name)}.*"):
    with contextlib.suppress(OSError):  # another process was faster
      if time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _write_error(path: pathlib.Path, error: OSError) -> UserError:
  other = "choose another folder"
  if path.absolute().is_relative_to(cache_dir()):
    other = "set FROZEN_JAX_CACHE to another folder"
  return UserError(f"cannot write {path}: {error.strerror or error}; free some space or {other}")
