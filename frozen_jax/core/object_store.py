"""Paths on object stores: `gs://BUCKET/KEY` (Google Cloud Storage) and `s3://BUCKET/KEY` (S3).

The one owner of what talks to a store, by fsspec and its drivers gcsfs and s3fs (the extras `gcs`
and `s3`). A store has objects by key and no folders: a folder is there while something is below it.
An object is there as a whole or not at all; nothing is appended to, nothing is renamed. What is
written is listed at once, on both stores.

Credentials and end points are those that the drivers find: Google's default credentials and
STORAGE_EMULATOR_HOST; AWS's variables, profiles and roles, and AWS_ENDPOINT_URL.
"""

import concurrent.futures
import contextlib
import fnmatch
import functools
import importlib.util
import io
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from frozen_jax.core.errors import StoreError, UserError
from frozen_jax.core.store_errors import check_credentials_file, status_of, translated

_EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # driver and our extra, by scheme
_TRANSFERS = 8  # at the same time


class StoreStat(NamedTuple):
  """Size in bytes, time of the last change in seconds, and a tag that changes with the contents."""

  st_size: int
  st_mtime: float
  tag: str


class StorePath:
  """A path on a store, with those methods of `pathlib.Path` that a store has.

  It is no `os.PathLike`: what needs a local file raises TypeError, and takes
  `store_copies.local_file`.

  Its methods raise FileNotFoundError as those of pathlib do, UserError for missing credentials or
  permissions, and StoreError where the store fails.
  """

  def __init__(self, url: str):
    """Raises UserError for another scheme, no bucket, or an extra that is not installed."""
    scheme, _, rest = url.partition("://")
    if scheme not in _EXTRAS:
      known = " and ".join(f"{one}://" for one in _EXTRAS)
      raise UserError(f"{url}: there is no store {scheme}://; give a folder, or one of {known}")
    keys = tuple(part for part in rest.split("/") if part)
    if not keys or not rest.partition("/")[0]:
      raise UserError(f"{url} names no bucket; write {scheme}://BUCKET/FOLDER")
    driver, extra = _EXTRAS[scheme]
    if not _is_installed(driver):
      raise UserError(
        f"{url} needs {driver}; run pip install 'frozen_jax[{extra}]', or give a local path"
      )
    self.scheme, self._keys = scheme, keys

  def __str__(self) -> str:
    return f"{self.scheme}://{self._key}"

  def __repr__(self) -> str:
    return f"StorePath({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, StorePath) and str(self) == str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __lt__(self, other: "StorePath") -> bool:
    return (self.scheme, self._keys) < (other.scheme, other._keys)

  def __truediv__(self, part: object) -> "StorePath":
    return StorePath(f"{self}/{part}")

  # --- names

  @property
  def _key(self) -> str:
    return "/".join(self._keys)

  @property
  def bucket(self) -> str:
    """`gs://BUCKET`."""
    return f"{self.scheme}://{self._keys[0]}"

  @property
  def parts(self) -> tuple[str, ...]:
    """The bucket as `gs://BUCKET`, then each part of the key."""
    return (self.bucket, *self._keys[1:])

  @property
  def name(self) -> str:
    """The last part; of a bucket its name."""
    return self._keys[-1]

  @property
  def suffix(self) -> str:
    """The ending of the name, as in pathlib."""
    return pathlib.PurePosixPath(self.name).suffix

  @property
  def parent(self) -> "StorePath":
    """The folder; of a bucket itself."""
    return StorePath(f"{self.scheme}://{'/'.join(self._keys[:-1] or self._keys)}")

  @property
  def parents(self) -> Sequence["StorePath"]:
    """All folders, from the nearest to the bucket."""
    count = len(self._keys)
    keys = ["/".join(self._keys[:end]) for end in range(count - 1, 0, -1)]
    return [StorePath(f"{self.scheme}://{key}") for key in keys]

  def with_name(self, name: str) -> "StorePath":
    """Another name in the same folder."""
    return self.parent / name

  def relative_to(self, folder: "StorePath") -> pathlib.PurePosixPath:
    """The part below a folder; ValueError where it is not below it."""
    return pathlib.PurePosixPath(self._key).relative_to(folder._key)

  def absolute(self) -> "StorePath":
    """Itself."""
    return self

  def resolve(self) -> "StorePath":
    """Itself: there are no links."""
    return self

  # --- what is there

  def _info(self) -> dict[str, Any] | None:
    with translated(self):
      try:
        return _file_system(self.scheme).info(self._key)
      except FileNotFoundError:
        return None

  def exists(self) -> bool:
    """Whether there is an object of this key, or one below it."""
    return self._info() is not None

  def is_file(self) -> bool:
    """Whether there is an object of this key."""
    info = self._info()
    return info is not None and info["type"] == "file"

  def is_dir(self) -> bool:
    """Whether there is an object below it."""
    info = self._info()
    return info is not None and info["type"] == "directory"

  def stat(self) -> StoreStat:
    """Of an object."""
    info = self._info()
    if info is None or info["type"] != "file":
      raise FileNotFoundError(f"there is no file {self}")
    return _stat(info)

  def iterdir(self) -> Iterator["StorePath"]:
    """What is directly below it; FileNotFoundError where nothing is."""
    with translated(self):
      found = _file_system(self.scheme).ls(self._key, detail=True)
    names = {info["name"].rstrip("/").rpartition("/")[2] for info in found}
    names -= {self.name} if any(info["name"].rstrip("/") == self._key for info in found) else set()
    return iter([self / name for name in sorted(names)])

  def files(self) -> dict["StorePath", StoreStat]:
    """All objects below it, however deep, in the order of their keys."""
    with translated(self):
      try:
        found = _file_system(self.scheme).find(self._key, detail=True)
      except FileNotFoundError:
        found = {}
    below = {name: info for name, info in found.items() if name.startswith(f"{self._key}/")}
    return {
      StorePath(f"{self.scheme}://{name}"): _stat(below[name])
      for name in sorted(below)
      if not name.endswith("/")  # what consoles make for an empty folder
    }

  def rglob(self, pattern: str) -> Iterator["StorePath"]:
    """The objects below it whose names fit a pattern."""
    return (path for path in self.files() if fnmatch.fnmatchcase(path.name, pattern))

  # --- contents

  def read_bytes(self) -> bytes:
    """The contents of an object."""
    with translated(self):
      return _file_system(self.scheme).cat_file(self._key)

  def read_text(self, encoding: str = "utf-8") -> str:
    """The contents as text."""
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = "r", encoding: str = "utf-8") -> IO[Any]:
    """An object for reading, "r" or "rb", held in memory."""
    if mode not in ("r", "rb"):
      raise ValueError(f"mode {mode!r}: objects are opened to be read")
    data = io.BytesIO(self.read_bytes())
    return data if mode == "rb" else io.TextIOWrapper(data, encoding=encoding)

  def write_bytes(self, data: bytes) -> None:
    """Puts an object in the place of what is there."""
    with translated(self):
      _file_system(self.scheme).pipe_file(self._key, data)

  def create(self, data: bytes) -> None:
    """Writes an object that is not there yet; FileExistsError where it is. Of several at the same
    time one does (`ifGenerationMatch: 0` of Google's, `If-None-Match: *` of S3).
    """
    with translated(self):
      try:
        _file_system(self.scheme).pipe_file(self._key, data, mode="create")
      except Exception as error:
        if status_of(error) == 412:
          raise FileExistsError(f"{self} exists") from error
        raise

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes an object."""
    if not missing_ok:
      self.stat()
    with translated(self), contextlib.suppress(FileNotFoundError):
      _file_system(self.scheme).rm_file(self._key)

  def upload(self, source: pathlib.Path) -> None:
    """Puts a local file in the place of what is there."""
    with translated(self):
      _file_system(self.scheme).put_file(str(source), self._key)

  def download(self, target: pathlib.Path, size: int, bar: Any = None) -> None:
    """Writes an object to a local file; StoreError where it does not have `size` bytes.

    bar: of tqdm, over bytes.
    """
    from fsspec.callbacks import Callback

    class Bytes(Callback):
      def relative_update(self, inc: int = 1) -> None:
        bar.update(inc)

    more = {} if bar is None else {"callback": Bytes()}
    with translated(self):
      _file_system(self.scheme).get_file(self._key, str(target), **more)
    if (got := target.stat().st_size) != size:
      raise StoreError(f"{self}: {got} of {size} bytes came; run the same command again")


AnyPath = pathlib.Path | StorePath


def any_path(path: str | os.PathLike[str] | StorePath) -> AnyPath:
  """A path of either kind: on a store where it has a scheme.

  Raises UserError as `StorePath`, and for a scheme without both slashes.
  """
  if isinstance(path, StorePath):
    return path
  text = os.fspath(path)
  if _has_scheme(text):
    return StorePath(text)
  scheme, separator, rest = text.partition(":")
  if separator and scheme in _EXTRAS:
    raise UserError(f"{text} would be a folder here; a store is {scheme}://{rest.lstrip('/')}")
  return pathlib.Path(text)


def _has_scheme(text: str) -> bool:
  scheme, separator, _ = text.partition("://")
  return bool(separator) and scheme.isalnum()


def in_parallel(work: Iterable[Any]) -> None:
  """Calls functions without arguments, some at the same time; raises the first error of any."""
  pool = concurrent.futures.ThreadPoolExecutor(_TRANSFERS)
  try:
    for future in [pool.submit(one) for one in work]:
      future.result()
  finally:
    pool.shutdown(cancel_futures=True)


def remove_all(paths: Iterable[StorePath]) -> None:
  """Removes objects, in any order; those that are not there do not matter."""
  in_parallel([functools.partial(path.unlink, missing_ok=True) for path in paths])


@functools.cache
def _is_installed(driver: str) -> bool:
  return importlib.util.find_spec(driver) is not None


@functools.cache
def _file_system(scheme: str) -> Any:
  """The driver of a store, which keeps no listings: other processes write there too."""
  if scheme == "gs":
    from gcsfs.core import GCSFileSystem as FileSystem  # not the one that asks what kind it is

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
    check_credentials_file()
  else:
    from s3fs import S3FileSystem as FileSystem
  return FileSystem(use_listings_cache=False, skip_instance_cache=True)


def _stat(info: dict[str, Any]) -> StoreStat:
  changed = info.get("mtime") or info.get("LastModified")
  if isinstance(changed, str):  # as gcsfs gives it in some versions
    import datetime

    changed = datetime.datetime.fromisoformat(changed)
  seconds = changed.timestamp() if changed is not None else 0.0
  tag = info.get("generation") or info.get("ETag") or info.get("etag") or ""
  return StoreStat(int(info["size"]), seconds, str(tag).strip('"'))
