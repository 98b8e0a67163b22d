"""The artifacts of a workdir on an object store: made and read in the cache, kept on the store.

Each host has a folder of its own in the cache. Of a workdir on a disk nothing here does anything.
"""

import hashlib
import pathlib
import time

import jax

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.files import (
  atomic_file,
  put_folder,
  temporary_folder,
  upload_folder,
  write_bytes,
)
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.reading import download_all

UPLOAD_EVERY = 60.0  # seconds, of rows that are being made


class StoredArtifacts:
  """What a store has of the artifacts of one folder. `local`: where they are made and read."""

  def __init__(self, folder: AnyPath):
    self._store = folder if isinstance(folder, StorePath) else None
    self.local = folder if isinstance(folder, pathlib.Path) else _in_cache(folder)
    self._uploaded = time.monotonic()

  def fetch(self, name: str, note: str) -> None:
    """Copies an artifact and its note, where the note on the store is not the one that is here.

    Where the store has none, the one that is here goes.
    """
    if self._store is None:
      return
    here = self.local / note
    try:
      theirs = (self._store / note).read_bytes()
    except FileNotFoundError:
      here.unlink(missing_ok=True)
      return
    if not here.exists() or here.read_bytes() != theirs:
      here.unlink(missing_ok=True)
      self.copy(name)
      write_bytes(here, theirs)

  def copy(self, name: str) -> None:
    """Copies a file or folder from the store, if it is there."""
    if self._store is None:
      return
    source, target = self._store / name, self.local / name
    if source.is_file():
      with atomic_file(target) as temporary:
        source.download(temporary, source.stat().st_size)
    elif files := source.files():
      with temporary_folder(target) as temporary:
        download_all(source, files, temporary, progress=True)
        put_folder(temporary, target)

  def keep(self, name: str) -> None:
    """Uploads a file or folder."""
    if self._store is None:
      return
    if (self.local / name).is_dir():
      upload_folder(self.local / name, self._store / name, alone=True)
    else:
      (self._store / name).upload(self.local / name)
    self._uploaded = time.monotonic()

  def keep_now_and_then(self, name: str) -> None:
    """Uploads a file that grows, unless that was done within `UPLOAD_EVERY` seconds."""
    if time.monotonic() - self._uploaded > UPLOAD_EVERY:
      self.keep(name)

  def drop(self, name: str) -> None:
    """Removes a file from the store."""
    if self._store is not None:
      (self._store / name).unlink(missing_ok=True)


def _in_cache(folder: AnyPath) -> pathlib.Path:
  name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
  return cache_dir() / "workdirs" / name / str(jax.process_index())
