"""Artifacts of a workdir: files and folders that are made of something, and made anew only when it
changes.

Next to an artifact stands NAME.meta.json with its dependencies (settings, digests of files,
fingerprints of models) and its own digest. It is written last and removed first, so after a kill at
any point the artifact is either complete or made anew. Rows that take long are kept block by block
in NAME.KEY.part, KEY naming the dependencies, and a killed run continues after them.

The artifacts of a workdir on an object store are made and read in the cache of each host. There
they are uploaded, the record last; where the record on the store is another one, they are copied
from there.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

from frozen_jax.config.dependencies import Dependencies, changed, key, record
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file, atomic_folder, write_json
from frozen_jax.core.json_row import Row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.progress import ProgressBar
from frozen_jax.pipelines.stored_artifacts import StoredArtifacts
from frozen_jax.sharding.hosts import barrier, is_first_host

_LOG = logging.getLogger(__name__)
_READ_BYTES = 2**20
_SUFFIX, _PART = ".meta.json", ".part"
_PROGRESS_DELAY = 2  # seconds before a progress bar shows

Make = Callable[[pathlib.Path], None]
MakeRows = Callable[[int], Iterable[Row]]


class Artifacts:
  """The artifacts of one folder.

  `digests` are those of all that was asked for so far, by name: what later ones depend on. On
  several hosts each makes the same and the first one writes; the folder is one that all see.
  `given` is that folder, `folder` where its artifacts are made and read.
  """

  def __init__(self, folder: AnyPath):
    self.given, self._stored = folder, StoredArtifacts(folder)
    self.folder = self._stored.local
    self.digests: dict[str, str] = {}

  def path(self, name: str) -> pathlib.Path:
    """Where an artifact is."""
    return self.folder / name

  def found(self, name: str) -> pathlib.Path:
    """Where an artifact of an earlier run is, if it is there."""
    self._stored.fetch(name, name + _SUFFIX)
    return self.path(name)

  def file(self, name: str, dependencies: Dependencies, make: Make) -> pathlib.Path:
    """Makes the file of that name, unless it is there, complete and of equal dependencies.

    `make` writes to the path that it is given. Raises UserError where that cannot be written.
    """
    return self._ensure(name, dependencies, make, atomic_file)

  def tree(self, name: str, dependencies: Dependencies, make: Make) -> pathlib.Path:
    """As `file`, for a folder that `make` fills."""
    return self._ensure(name, dependencies, make, atomic_folder)

  def rows(
    self,
    name: str,
    dependencies: Dependencies,
    make: MakeRows,
    block: int,
    total: int | None = None,
  ) -> pathlib.Path:
    """As `file`, for JSON lines; after a kill only the block that was under way is redone.

    Args:
      make: how many rows are there -> those after them. block: rows of a block; what is there is a
        multiple of it. total: how many there will be, for the progress bar.
    """
    part = self.path(f"{name}.{key(dependencies)}{_PART}")

    def write(target: pathlib.Path) -> None:
      if not part.exists():
        self._stored.copy(part.name)
      done = _complete_blocks(part, block)
      barrier(f"{name} counted")
      rows = iter(make(done))
      ours = part if is_first_host() else target
      shown = {"desc": name, "unit": "row", "leave": False, "disable": not is_first_host()}
      with (
        ours.open("ab") as file,
        ProgressBar(initial=done, total=total, delay=_PROGRESS_DELAY, **shown) as bar,
      ):
        while chunk := list(itertools.islice(rows, block)):
          lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chunk)
          file.write("".join(lines).encode())
          file.flush()
          os.fsync(file.fileno())
          if is_first_host():
            self._stored.keep_now_and_then(part.name)
          bar.update(len(chunk))
      if is_first_host():
        part.replace(target)

    path = self.file(name, dependencies, write)
    if is_first_host():
      self._stored.drop(part.name)
    return path

  def _ensure(self, name: str, dependencies: Dependencies, make: Make, atomic: Any) -> pathlib.Path:
    path, note = self.path(name), self.path(name + _SUFFIX)
    self._stored.fetch(name, note.name)
    known = _read_note(note)
    current = digest(path) if path.exists() and known is not None else ""
    barrier(f"{name} looked at")
    if (
      known is not None
      and known.get("digest") == current
      and not changed(dependencies, known.get("dependencies", {}))
    ):
      _LOG.info("%s: unchanged", name)
      self.digests[name] = current
      return path
    begun = time.monotonic()
    self.folder.mkdir(parents=True, exist_ok=True)
    if is_first_host():
      self._stored.drop(note.name)
      note.unlink(missing_ok=True)
      _remove(path)
      with atomic(path) as target:
        make(target)
      self._stored.keep(name)
    else:
      scratch = self.path(f".{name}.of-another-host")
      make(scratch)
      _remove(scratch)
    barrier(f"{name} made")
    if not is_first_host():
      self._stored.copy(name)
    self.digests[name] = digest(path)
    if is_first_host():
      write_json(note, {"dependencies": record(dependencies), "digest": self.digests[name]})
      self._stored.keep(note.name)
    barrier(f"{name} noted")
    _LOG.info("%s: made in %.1f s", name, time.monotonic() - begun)
    return path


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, or of a folder's files with their names; UserError where unreadable."""
  total = hashlib.sha256()
  try:
    if not path.is_dir():
      return _file_digest(path)
    for one in sorted(file for file in path.rglob("*") if file.is_file()):
      total.update(f"{one.relative_to(path)} {_file_digest(one)}\n".encode())
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror or error}); check the path") from error
  return total.hexdigest()


def _file_digest(path: pathlib.Path) -> str:
  total = hashlib.sha256()
  with path.open("rb") as file:
    while part := file.read(_READ_BYTES):
      total.update(part)
  return total.hexdigest()


def _read_note(note: pathlib.Path) -> dict[str, Any] | None:
  """What is noted; None where nothing is, or not all of it: the artifact is then made again."""
  try:
    found = json.loads(note.read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def _complete_blocks(part: pathlib.Path, block: int) -> int:
  """Truncates a file after its last complete block of lines; how many lines remain (0: no file)."""
  if not part.exists():
    return 0
  ends, at = [0], 0
  with part.open("rb") as file:
    for number, line in enumerate(file, start=1):
      at += len(line)
      if line.endswith(b"\n") and number % block == 0:
        ends.append(at)
  if is_first_host():
    os.truncate(part, ends[-1])
  return (len(ends) - 1) * block


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
