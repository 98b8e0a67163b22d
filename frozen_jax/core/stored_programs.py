"""Compiled programs beside a workdir on an object store: a run that is restarted on a new machine
finds what it has compiled before.

JAX keeps them in the folder of `core/compilation_cache.py`. (By etils and TensorFlow it could use
Google's store itself; not S3.) Here the folder gets what the store has when the run begins, and the
store what the run uses.
"""

import contextlib
import functools
import logging
import pathlib
import threading
import time
from collections.abc import Iterator

from frozen_jax.core.compilation_cache import is_own_folder_used, own_folder
from frozen_jax.core.errors import StoreError, UserError
from frozen_jax.core.files import atomic_file
from frozen_jax.core.object_store import AnyPath, StorePath, StoreStat, in_parallel

COMPILED = "compiled"  # within a workdir
UPLOAD_EVERY = 60.0  # seconds
# JAX's names: of a program, and of the time of its last use, which is written after it.
_PROGRAM, _USED = "-cache", "-atime"
_ERRORS = (StoreError, UserError, OSError)
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def stored_programs(workdir: AnyPath, uploads: bool) -> Iterator[None]:
  """Fetches what the workdir has compiled, and within it uploads what is used and not there yet.

  Does nothing where the workdir is on a disk, or the user keeps programs in another folder. Where
  the store fails it says so once, and the run goes on without.

  uploads: of several hosts the first one's task.
  """
  if not isinstance(workdir, StorePath) or not is_own_folder_used():
    yield
    return
  local, stored = own_folder(), workdir / COMPILED / own_folder().name
  begun, there, stop = time.time_ns(), set[str](), threading.Event()
  try:
    found = stored.files()
    in_parallel(functools.partial(_fetch, path, stat, local) for path, stat in found.items())
    there |= {path.name for path in found}
  except _ERRORS as error:
    _LOG.warning("what is compiled is not kept on the store: %s", error)
    uploads = False
  thread = threading.Thread(target=_upload, args=(local, stored, begun, there, stop), daemon=True)
  if uploads:
    thread.start()
  try:
    yield
  finally:
    stop.set()
    if uploads:
      thread.join(UPLOAD_EVERY)


def _fetch(path: StorePath, stat: StoreStat, folder: pathlib.Path) -> None:
  """Copies a program that is not there, after a time of its last use, without which JAX fails."""
  program = folder / path.name
  if program.exists() or not path.name.endswith(_PROGRAM):
    return
  with atomic_file(program) as temporary:
    path.download(temporary, stat.st_size)
    _time_file(program).write_bytes(bytes(8))


def _upload(
  folder: pathlib.Path, stored: StorePath, begun: int, there: set[str], stop: threading.Event
) -> None:
  """Uploads what this run uses, now and then and at its end. begun: in nanoseconds."""
  ends = False
  while not ends:
    ends = stop.wait(UPLOAD_EVERY)
    try:
      for program in folder.glob(f"*{_PROGRAM}"):
        if program.name not in there and _last_use(program) >= begun:
          (stored / program.name).upload(program)
          there.add(program.name)
    except _ERRORS as error:
      _LOG.warning("what is compiled is not kept on the store: %s", error)
      return


def _time_file(program: pathlib.Path) -> pathlib.Path:
  return program.with_name(program.name.removesuffix(_PROGRAM) + _USED)


def _last_use(program: pathlib.Path) -> int:
  """Nanoseconds; 0 where it is not known, as while the program is being written."""
  try:
    return int.from_bytes(_time_file(program).read_bytes(), "little")
  except FileNotFoundError:
    return 0
