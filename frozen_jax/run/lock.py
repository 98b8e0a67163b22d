"""One run, one workdir: while a run trains it holds the lock of its workdir.

The lock is the kernel's (`flock`), on the file `.lock`, which says who holds it. It ends with the
process, however that ends, and on a network file system when the server gives up the host. On
several hosts the first one holds it for all. Where a file system has no locks none is held. On an
object store it is that of `core/store_lock.py`.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import user_write_errors
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.store_lock import StoreLock, held_by, this_process
from frozen_jax.sharding.hosts import gather_bytes, is_first_host

LOCK_FILE = ".lock"

_LOG = logging.getLogger(__name__)
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def locked(workdir: AnyPath) -> Iterator[None]:
  """Holds the lock of the workdir, which is created if need be.

  Raises:
    UserError: another process holds it; on several hosts each of them raises it.
  """
  with contextlib.ExitStack() as held:
    refused = ""
    if is_first_host():
      if isinstance(workdir, StorePath):
        refused = _take_on_store(workdir, held)
      else:
        refused = _take_on_disk(workdir, held)
    if refused := gather_bytes(refused.encode())[0].decode():
      raise UserError(refused)
    yield


def _take_on_store(workdir: StorePath, held: contextlib.ExitStack) -> str:
  """Takes the lock until `held` is closed; returns why not, "" where it could."""
  lock = StoreLock(workdir, this_process())
  if (holder := lock.take()) is not None:
    return _refusal(workdir, held_by(holder))
  held.callback(lock.release)
  return ""


def _take_on_disk(workdir: pathlib.Path, held: contextlib.ExitStack) -> str:
  """As `_take_on_store`."""
  with user_write_errors(workdir / LOCK_FILE):
    workdir.mkdir(parents=True, exist_ok=True)
    file = held.enter_context((workdir / LOCK_FILE).open("ab+", buffering=0))
  if not (refused := _take(file, workdir)):
    held.callback(_forget, file)
  return refused


def _forget(file: IO[bytes]) -> None:
  with contextlib.suppress(OSError):
    file.truncate(0)


def _take(file: IO[bytes], workdir: pathlib.Path) -> str:
  """Locks the file and notes the holder in it; returns why not, "" where it could."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      file.seek(0)
      return _in_use(workdir, file.read())
    _LOG.warning("%s has no locks (%s): do not start a second run there", workdir, error.strerror)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  holder = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
  with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
    file.truncate(0)
    file.write(json.dumps(holder).encode())
  return ""


def _in_use(workdir: pathlib.Path, text: bytes) -> str:
  try:
    holder = json.loads(text)
    who = f"process {holder['process']} on host {holder['host']} since {holder['since']}"
  except (ValueError, TypeError, KeyError):  # not written yet
    who = "another process"
  return _refusal(workdir, who)


def _refusal(workdir: AnyPath, who: str) -> str:
  return (
    f"{workdir} is in use by a run, {who}; wait until that has ended, stop it, or choose another"
    " --workdir"
  )
