"""The lock of a workdir on an object store, which has no locks of its own.

The lock is the object `.lock-NUMBER` with the highest number. It says who holds it, and its holder
writes it again every `BEAT` seconds. It is created only where it is not there yet, so of several
that want it one gets it. A lock is dead when its process was on this machine and has ended, or when
it does not change for `DEAD` seconds; then the next number is free. No clocks are compared. Whoever
finds another lock in the place of its own ends at once.
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from frozen_jax.core.errors import StoreError, UserError
from frozen_jax.core.files import remove_unfinished, user_write_errors
from frozen_jax.core.object_store import StorePath, remove_all

BEAT, DEAD = 10.0, 45.0  # seconds
_LOG = logging.getLogger(__name__)
_LOOK = 2.0  # seconds between two looks at a lock that may be dead
_LAST_WRITE = 10.0  # seconds that a lock is waited for that is being written
_NAME = re.compile(r"\.lock-(\d{6})")

Holder = Mapping[str, Any]


class StoreLock:
  """The lock of one workdir, for one process."""

  def __init__(self, workdir: StorePath, holder: Holder, lost: Callable[[str], None] | None = None):
    """holder: of `this_process`. lost: is called, in a thread, where another one has the lock."""
    self._workdir, self._holder = workdir, holder
    self._lost = _end if lost is None else lost
    self._path: StorePath | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)

  def take(self) -> Holder | None:
    """Takes the lock, or returns who holds it; of one that may be dead that takes a while.

    Raises UserError where nothing can be written there, StoreError where the store fails.
    """
    dead: list[StorePath] = []
    while living := [path for path in _locks(self._workdir) if path not in dead]:
      holder = _wait(living[-1])
      if holder is not None:
        return holder
      dead.append(living[-1])
    path = self._workdir / f".lock-{1 + max(map(_number, dead), default=0):06d}"
    try:
      with user_write_errors(self._workdir):
        path.create(self._text())
    except UserError as error:
      if isinstance(error.__cause__, FileExistsError):
        return _read(path) or {}
      raise
    if others := [one for one in _locks(self._workdir) if one not in (path, *dead)]:
      path.unlink(missing_ok=True)
      return _read(others[-1]) or {}
    remove_all(dead)
    self._path = path
    self._thread.start()
    return None

  def release(self) -> None:
    """Gives the lock up."""
    self._ended.set()
    if self._path is None:
      return
    self._thread.join(_LAST_WRITE)
    with contextlib.suppress(StoreError):
      self._path.unlink(missing_ok=True)

  def _text(self) -> bytes:
    return json.dumps({**self._holder, "beat": time.time()}).encode()

  def _beat(self) -> None:
    """Writes the lock again and again, until it is given up or another one has it."""
    assert self._path is not None
    while not self._ended.wait(BEAT):
      try:
        if (found := _locks(self._workdir)) != [self._path] and not self._ended.is_set():
          taken = (_read(found[-1]) or {}) if found else {}
          self._lost(f"the lock of {self._workdir} was lost: {held_by(taken)} has it")
          return
        self._path.write_bytes(self._text())
      except (OSError, StoreError, UserError):
        continue  # what the run itself writes will say so


def this_process() -> Holder:
  """What names this process, on all machines."""
  return {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": _machine(),
    "started": _started(os.getpid()),
  }


def held_by(holder: Holder) -> str:
  """Who holds a lock, in words."""
  if "process" not in holder:
    return "another process"
  return f"process {holder['process']} on host {holder.get('host')} since {holder.get('since')}"


def _locks(workdir: StorePath) -> list[StorePath]:
  """The locks that are there, by number."""
  try:
    return sorted(path for path in workdir.iterdir() if _NAME.fullmatch(path.name))
  except FileNotFoundError:
    return []


def _number(path: StorePath) -> int:
  return int(path.name.removeprefix(".lock-"))


def _wait(path: StorePath) -> Holder | None:
  """Who holds a lock, once that shows; None where it is dead or given up."""
  tag, end = "", time.monotonic() + DEAD
  while time.monotonic() < end:
    holder = _read(path)
    try:
      stat = path.stat()
    except FileNotFoundError:
      return None
    if holder is None or _has_ended(holder):
      return None
    if _runs_here(holder) or (tag and stat.tag != tag):
      return holder
    if not tag:
      said = (path.parent, held_by(holder), DEAD)
      _LOG.info("%s was locked by %s; up to %.0f s show whether that still runs", *said)
    tag = stat.tag
    time.sleep(_LOOK)
  return None


def _read(path: StorePath) -> Holder | None:
  """What a lock says; None where it is gone."""
  try:
    found = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _has_ended(holder: Holder) -> bool:
  """Whether the process of a lock was on this machine and is no more."""
  here = holder.get("machine") == _machine() != ""
  return here and _started(holder.get("process", 0)) != holder.get("started")


def _runs_here(holder: Holder) -> bool:
  here = holder.get("machine") == _machine() != ""
  return here and _started(holder.get("process", 0)) == holder.get("started")


def _machine() -> str:
  """Names the machine since it was started, and the container: where process numbers are told
  apart; "" where that is not known.
  """
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _started(process: int) -> str:
  """When a process of this machine was started, in ticks; "" where there is none."""
  try:
    stat = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return ""
  return stat.rpartition(")")[2].split()[19]


def _end(message: str) -> None:
  """Ends the process: another one writes to its workdir."""
  remove_unfinished()
  print(f"error: {message}; this run ends", file=sys.stderr, flush=True)
  os._exit(1)
