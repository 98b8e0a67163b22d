"""Steps of a job: each makes a file or a folder out of inputs, skipped while these are equal.

Beside what a step makes stands NAME.made.json with its inputs (options, digests of files,
fingerprints of models) and the digest of what was made. It is written last and removed first, so
after a kill at any place the step is either done or made anew. Rows that take long are kept block
by block in NAME.KEY.part, KEY naming the inputs, and a killed step goes on behind them.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tqdm import tqdm

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import whole_file, whole_folder
from frozen_jax.run.report import write_json
from frozen_jax.sharding.hosts import barrier, is_first_host

_LOG = logging.getLogger(__name__)
_AT_ONCE = 2**20  # bytes
_SUFFIX, _PART = ".made.json", ".part"
_QUIET = 2  # seconds before a progress bar shows

Inputs = Mapping[str, Any]
Make = Callable[[pathlib.Path], None]
Rows = Callable[[int], Iterable[Mapping[str, Any]]]


class Steps:
  """The steps of one folder.

  `digests` are those of all that was asked for so far, by name: the inputs of what comes behind.
  On several hosts each makes the same and the first one writes; the folder is one that all see.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.digests: dict[str, str] = {}

  def path(self, name: str) -> pathlib.Path:
    """Where a step's file or folder stands."""
    return self.folder / name

  def file(self, name: str, inputs: Inputs, make: Make) -> pathlib.Path:
    """Makes the file of that name, unless it stands there, made of equal inputs and whole.

    `make` writes to the path that it is given. Raises UserError where that cannot be written.
    """
    return self._made(name, inputs, make, whole_file)

  def tree(self, name: str, inputs: Inputs, make: Make) -> pathlib.Path:
    """As `file`, for a folder that `make` fills."""
    return self._made(name, inputs, make, whole_folder)

  def rows(
    self, name: str, inputs: Inputs, make: Rows, at_once: int, total: int | None = None
  ) -> pathlib.Path:
    """As `file`, for JSON lines; after a kill only the block of rows that was under way is redone.

    Args:
      make: how many rows are there -> those behind them. at_once: rows of a block; what is there
        is a multiple of it. total: how many there will be, for the progress bar.
    """
    part = self.path(f"{name}.{key(inputs)}{_PART}")

    def written(beside: pathlib.Path) -> None:
      done = _whole_blocks(part, at_once)
      barrier(f"{name} counted")
      rows = iter(make(done))
      ours = part if is_first_host() else beside
      shown = {"desc": name, "unit": "row", "leave": False, "disable": not is_first_host()}
      with (
        ours.open("ab") as file,
        tqdm(initial=done, total=total, delay=_QUIET, **shown) as bar,
      ):
        while block := list(itertools.islice(rows, at_once)):
          lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in block)
          file.write("".join(lines).encode())
          file.flush()
          os.fsync(file.fileno())
          bar.update(len(block))
      if is_first_host():
        part.replace(beside)

    return self.file(name, inputs, written)

  def _made(self, name: str, inputs: Inputs, make: Make, whole: Any) -> pathlib.Path:
    path, note = self.path(name), self.path(name + _SUFFIX)
    inputs = json.loads(json.dumps(inputs))
    known = _read(note)
    found = digest(path) if path.exists() and known is not None else ""
    barrier(f"{name} looked at")
    if known is not None and known.get("inputs") == inputs and known.get("digest") == found:
      _LOG.info("%s: unchanged", name)
      self.digests[name] = found
      return path
    begun = time.monotonic()
    self.folder.mkdir(parents=True, exist_ok=True)
    if is_first_host():
      note.unlink(missing_ok=True)
      _remove(path)
      with whole(path) as beside:
        make(beside)
    else:
      scratch = self.path(f".{name}.of-another-host")
      make(scratch)
      _remove(scratch)
    barrier(f"{name} made")
    made = digest(path)
    if is_first_host():
      write_json(note, {"inputs": inputs, "digest": made})
    barrier(f"{name} noted")
    _LOG.info("%s: made in %.1f s", name, time.monotonic() - begun)
    self.digests[name] = made
    return path


def key(inputs: Inputs) -> str:
  """Eight hex digits that name inputs."""
  return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, or of a folder's files with their names; UserError where unreadable."""
  total = hashlib.sha256()
  try:
    if not path.is_dir():
      return _of_file(path)
    for one in sorted(file for file in path.rglob("*") if file.is_file()):
      total.update(f"{one.relative_to(path)} {_of_file(one)}\n".encode())
  except OSError as error:
    raise UserError(f"cannot read {path} ({error.strerror or error}); check the path") from error
  return total.hexdigest()


def _of_file(path: pathlib.Path) -> str:
  total = hashlib.sha256()
  with path.open("rb") as file:
    while part := file.read(_AT_ONCE):
      total.update(part)
  return total.hexdigest()


def _read(note: pathlib.Path) -> dict[str, Any] | None:
  """What is noted; None where nothing is, or nothing whole: the step is then made again."""
  try:
    found = json.loads(note.read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def _whole_blocks(part: pathlib.Path, at_once: int) -> int:
  """Cuts a file behind its last whole block of lines; how many lines those are (0: no file)."""
  if not part.exists():
    return 0
  ends, at = [0], 0
  with part.open("rb") as file:
    for number, line in enumerate(file, start=1):
      at += len(line)
      if line.endswith(b"\n") and number % at_once == 0:
        ends.append(at)
  if is_first_host():
    os.truncate(part, ends[-1])
  return (len(ends) - 1) * at_once


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
