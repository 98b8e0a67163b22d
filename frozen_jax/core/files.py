"""Writing files and folders atomically.

What is written has a temporary name until it is complete; then it is renamed. What belongs on an
object store is written in the cache folder, and uploaded when it is complete.
"""

import contextlib
import fnmatch
import glob
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from frozen_jax.core import interruption
from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath, StorePath, in_parallel, remove_all

ABANDONED_SECONDS = 24 * 3600  # after which a temporary file has lost its writer

_unfinished: set[pathlib.Path] = set()  # temporary files and folders of this process


def remove_unfinished() -> None:
  """Deletes what this process has begun to write and not finished: for one that ends at once."""
  for temporary in list(_unfinished):
    _remove(temporary)


@contextlib.contextmanager
def user_write_errors(path: AnyPath) -> Iterator[None]:
  """A context for writing a file or folder: its errors are raised as UserErrors."""
  try:
    yield
  except OSError as error:
    raise _write_error(path, error) from error


def write_bytes(path: AnyPath, data: bytes) -> None:
  """Writes `data` to `path` atomically: a reader sees the old contents or the new.

  Raises:
    UserError: as `atomic_file`.
  """
  with atomic_file(path) as temporary:
    temporary.write_bytes(data)


def write_json(path: AnyPath, value: Any) -> None:
  """Writes indented JSON as `write_bytes` does."""
  write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_lines(path: AnyPath, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON lines as `write_bytes` does."""
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  write_bytes(path, text.encode())


@contextlib.contextmanager
def atomic_file(path: AnyPath) -> Iterator[pathlib.Path]:
  """A temporary file alongside `path` to write to, renamed to `path` at the end, or uploaded.

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
      if isinstance(path, StorePath):
        path.upload(temporary)
      else:
        temporary.replace(path)
  except OSError as error:
    raise _write_error(path, error) from error


@contextlib.contextmanager
def atomic_folder(path: AnyPath) -> Iterator[pathlib.Path]:
  """A temporary folder to fill, renamed to `path` at the end; after an exception it is deleted.

  Where another process has created `path` meanwhile, that one stays.

  Raises:
    UserError: writing failed (no space, no permission).
  """
  with temporary_folder(path) as temporary:
    yield temporary
    if path.exists():
      return
    if isinstance(path, StorePath):
      upload_folder(temporary, path)
      return
    with contextlib.suppress(FileExistsError):
      temporary.rename(path)


@contextlib.contextmanager
def filled_folder(path: AnyPath, replaced: Sequence[str] = ()) -> Iterator[pathlib.Path]:
  """A temporary folder to fill, whose files at the end take their places in `path`, all of them.

  A folder among them takes the place of one of its name as a whole. Other files in `path` stay, but
  for those with names of the patterns `replaced`, which go first;
  JSON files, which describe others, come last. After an exception `path` is as before. Raises
  UserError as `atomic_folder`.
  """
  with temporary_folder(path) as temporary:
    yield temporary
    with interruption.deferred():
      _check_kinds(temporary, path)
      if replaced and path.exists():
        there: Iterator[AnyPath] = path.iterdir()
        for old in list(there):
          is_older = any(fnmatch.fnmatch(old.name, pattern) for pattern in replaced)
          if is_older and not old.is_dir():
            old.unlink()
      if isinstance(path, StorePath):
        upload_folder(temporary, path)
        return
      if not path.exists():
        temporary.rename(path)
        return
      for new in sorted(temporary.iterdir(), key=lambda one: (one.suffix == ".json", one)):
        if new.is_dir():
          put_folder(new, path / new.name)
        else:
          new.replace(path / new.name)


def _check_kinds(new: pathlib.Path, path: AnyPath) -> None:
  """UserError, before anything changes, where a file would have to replace a folder or the reverse.

  new: a folder whose files are to take their places in `path`.
  """
  if isinstance(path, StorePath) or not path.exists():
    return
  if not path.is_dir():
    raise UserError(f"{path} is a file; choose another folder")
  for one in new.iterdir():
    there = path / one.name
    if there.exists() and there.is_dir() != one.is_dir():
      kinds = ("a folder", "a file") if there.is_dir() else ("a file", "a folder")
      raise UserError(f"{there} is {kinds[0]}, and {kinds[1]} is to be there; move it away")


def claim_folder(path: AnyPath) -> None:
  """Makes an empty folder for `put_folder`; FileExistsError where something has that name."""
  if not isinstance(path, StorePath):
    path.mkdir()
  elif path.exists():
    raise FileExistsError(f"{path} exists")
  else:
    (path / ".claimed").create(b"")


def put_folder(source: pathlib.Path, path: AnyPath) -> None:
  """Moves a complete folder of `temporary_folder` to its path, in the place of what is there."""
  if isinstance(path, StorePath):
    upload_folder(source, path, alone=True)
  elif path.exists() and any(path.iterdir()):
    with temporary_folder(path) as old:
      path.rename(old)
      source.rename(path)
  else:
    source.rename(path)


def upload_folder(source: pathlib.Path, target: StorePath, alone: bool = False) -> None:
  """Uploads the files below a local folder. alone: other files of the target are removed.

  JSON files describe others: they go last, by name, and those that are there are removed first. So
  whatever ends it, nothing describes files of two writers.
  """
  files = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
  described = [file for file in files if file.suffix != ".json"]
  wanted, there = {target / file for file in files}, set(target.files())
  others = there - wanted if alone else set()
  remove_all(path for path in there & (wanted | others) if path.suffix == ".json")
  upload = lambda file: lambda: (target / file).upload(source / file)
  with user_write_errors(target):
    in_parallel(upload(file) for file in described)
    for file in files:
      if file.suffix == ".json":
        upload(file)()
  remove_all(others)


@contextlib.contextmanager
def temporary_folder(path: AnyPath) -> Iterator[pathlib.Path]:
  """A temporary folder alongside `path` to fill and to rename; deleted where it was not renamed.

  Of a path on a store it is in the cache folder, to be uploaded (`upload_folder`).

  Raises:
    UserError: writing failed (no space, no permission).
  """
  try:
    with _temporary(path, _new_folder) as temporary:
      yield temporary
  except OSError as error:
    raise _write_error(path, error) from error


@contextlib.contextmanager
def _temporary(path: AnyPath, make: Callable[[pathlib.Path, str], str]) -> Iterator[pathlib.Path]:
  """A new file or folder alongside `path`, which is deleted at the end if it is still there."""
  local = path if isinstance(path, pathlib.Path) else cache_dir() / "uploads" / path.name
  local.parent.mkdir(parents=True, exist_ok=True)
  _remove_abandoned(local)
  with interruption.deferred():
    temporary = pathlib.Path(make(local.parent, f".{local.name}."))
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


def folder_bytes(folder: AnyPath) -> int:
  """Bytes of a file, or of those below a folder, in which they may vanish meanwhile."""
  if isinstance(folder, StorePath):
    return sum(stat.st_size for stat in folder.files().values())
  if folder.is_file():
    return folder.stat().st_size
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


def check_writable(folder: AnyPath) -> None:
  """UserError where nothing can be written to a store; of a local folder that shows at once later.

  For work that writes to it only in the end.
  """
  if isinstance(folder, StorePath):
    probe = folder / f".write-check-{os.getpid()}"
    with user_write_errors(folder):
      probe.write_bytes(b"")
    probe.unlink(missing_ok=True)


def _write_error(path: AnyPath, error: OSError) -> UserError:
  if isinstance(path, StorePath):
    if isinstance(error, FileNotFoundError):
      return UserError(f"cannot write {path}: there is no bucket {path.bucket}; create it first")
    return UserError(f"cannot write {path}: {error.strerror or error}; free space in {cache_dir()}")
  other = "choose another folder"
  if path.absolute().is_relative_to(cache_dir()):
    other = "set FROZEN_JAX_CACHE to another folder"
  return UserError(f"cannot write {path}: {error.strerror or error}; free some space or {other}")
