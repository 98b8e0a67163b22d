"""Reading files that may be gzipped, or on an object store.

What is on a store is copied to the cache first: `stores/PATH/CONTENTS/NAME`, by hashes of the path
and of what is there. What has changed on the store is copied anew, and the copies of what was there
before are removed. A copy is complete or not there.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file, atomic_folder
from frozen_jax.core.object_store import AnyPath, StorePath, StoreStat, in_parallel
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.stalled import waits_for

_CHUNK_BYTES = 2**20
_PROGRESS_DELAY = 2  # seconds before a progress bar shows


def gunzip(packed: AnyPath, to: pathlib.Path) -> None:
  """Writes the contents of a gzip file to another file; UserError as `user_read_errors`."""
  with open_unpacked(packed) as file, to.open("wb") as out:
    shutil.copyfileobj(file, out, _CHUNK_BYTES)


def is_gzip(name: str) -> bool:
  """Whether a file of this name is gzipped; endings count in upper case too."""
  return name.lower().endswith(".gz")


def unpacked_name(name: str) -> str:
  """The name without the ending of a gzip file."""
  return name[: -len(".gz")] if is_gzip(name) else name


@contextlib.contextmanager
def open_unpacked(path: AnyPath) -> Iterator[io.BufferedIOBase]:
  """The file, unpacked while it is read if its name ends in .gz; UserError as below."""
  with user_read_errors(path):
    local = local_file(path)
    # What is typed into a pipe may come when it likes.
    with _File(local) if local.is_file() else local.open("rb", buffering=0) as raw:
      buffered = io.BufferedReader(raw, _CHUNK_BYTES)
      yield gzip.GzipFile(fileobj=buffered) if is_gzip(path.name) else buffered


class _File(io.FileIO):
  """A file whose answers are waited for (`core.stalled`)."""

  def readinto(self, buffer: Any) -> int | None:
    with waits_for(str(self.name)):
      return super().readinto(buffer)

  def read(self, size: int | None = -1) -> bytes:
    if size is None or size < 0:
      return self.readall()
    with waits_for(str(self.name)):
      return super().read(size) or b""

  def readall(self) -> bytes:
    return io.RawIOBase.readall(self) or b""


@contextlib.contextmanager
def user_read_errors(path: AnyPath) -> Iterator[None]:
  """A context for reading a file: its errors are raised as UserErrors."""
  try:
    yield
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f"there is no file {path}; check the path") from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is a damaged or truncated gzip file; fetch it anew") from error
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error


def local_file(path: AnyPath, progress: bool = True) -> pathlib.Path:
  """The file itself, or the copy of one on a store.

  progress: whether a copy that takes long is shown. Raises FileNotFoundError where there is none on
  the store, UserError where the cache cannot be written.
  """
  if isinstance(path, pathlib.Path):
    return path
  stat = path.stat()
  copy = _place(path, stat.tag) / path.name
  if not copy.exists():
    with _bar(path, stat.st_size, progress) as bar, atomic_file(copy) as temporary:
      path.download(temporary, stat.st_size, bar)
    _remove_others(copy.parent)
  return copy


def local_folder(
  path: AnyPath, wanted: Callable[[Iterable[str]], Iterable[str]] = list, progress: bool = True
) -> pathlib.Path:
  """The folder itself, or a copy of one on a store: of those files that are wanted.

  wanted: gives of the paths in the folder those to be copied. Raises UserError where there are none
  or the cache cannot be written.
  """
  if isinstance(path, pathlib.Path):
    return path
  found = {str(file.relative_to(path)): (file, stat) for file, stat in path.files().items()}
  files = dict(found[name] for name in wanted(found))
  if not files:
    raise UserError(f"{path} holds none of the files that are read; check the path")
  tags = "\n".join(f"{file} {stat.tag}" for file, stat in files.items())
  copy = _place(path, tags) / path.name
  if not copy.exists():
    with atomic_folder(copy) as temporary:
      download_all(path, files, temporary, progress)
    _remove_others(copy.parent)
  return copy


def download_all(
  path: StorePath, files: Mapping[StorePath, StoreStat], target: pathlib.Path, progress: bool
) -> None:
  """Copies files below a path on a store to a local folder, several at a time."""
  with _bar(path, sum(stat.st_size for stat in files.values()), progress) as bar:
    work = []
    for file, stat in files.items():
      local = target / file.relative_to(path)
      local.parent.mkdir(parents=True, exist_ok=True)
      work.append(functools.partial(file.download, local, stat.st_size, bar))
    in_parallel(work)


def _bar(path: StorePath, size: int, progress: bool) -> ProgressBar:
  return ProgressBar(
    total=size,
    desc=path.name,
    unit="B",
    unit_scale=True,
    delay=_PROGRESS_DELAY,
    leave=False,
    disable=not progress,
  )


def _place(path: StorePath, contents: str) -> pathlib.Path:
  names = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (str(path), contents)]
  return cache_dir().joinpath("stores", *names)


def _remove_others(folder: pathlib.Path) -> None:
  """Removes the copies of earlier contents; what another process has open stays as it is there."""
  for other in folder.parent.iterdir():
    if other != folder:
      shutil.rmtree(other, ignore_errors=True)
