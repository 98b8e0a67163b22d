"""Where the folders of checkpoints are kept: on a disk, or on an object store.

On a disk Orbax writes alongside and renames. On a store, where nothing is renamed, a checkpoint is
written in the cache folder and uploaded, `COMMITTED` last; it is removed in the opposite order. (Of
the two stores Orbax 0.12 itself writes to Google's alone.) So a kill leaves what is complete, or
what `clear` removes. A trained tree is replicated: the first host writes it for all, and every host
reads a copy of its own.
"""

import contextlib
import logging
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from frozen_jax.core.files import temporary_folder, upload_folder
from frozen_jax.core.object_store import AnyPath, StorePath, remove_all
from frozen_jax.core.reading import download_all
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.training.checkpoint_folders import COMMITTED, complete_checkpoints

HALF_WRITTEN = re.compile(r".*(\.orbax-checkpoint-tmp.*|\.removed)")
WAIT_FOR_THREADS, SETTLE = 5.0, 0.5  # seconds, after a save that failed


def clear(folder: AnyPath) -> None:
  """Removes what an interrupted save or removal has left in a stage's folder."""
  if isinstance(folder, StorePath):
    complete = set(complete_checkpoints(folder))
    remove_all(file for file in folder.files() if complete.isdisjoint(file.parents))
  elif folder.is_dir():
    for path in folder.iterdir():
      if HALF_WRITTEN.fullmatch(path.name):
        shutil.rmtree(path, ignore_errors=True)


def remove(path: AnyPath) -> None:
  """Removes a checkpoint; first it is made incomplete, so that no reader finds it half removed."""
  if isinstance(path, StorePath):
    (path / COMMITTED).unlink(missing_ok=True)
    remove_all(path.files())
  else:
    removed = path.with_name(path.name + ".removed")
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def write(path: AnyPath, trees: dict[str, Any], record: dict[str, Any]) -> None:
  """Writes a checkpoint that is not there yet; on several hosts all of them call it."""
  if not isinstance(path, StorePath):
    _save(path, trees, record)
    return
  if is_first_host():
    with temporary_folder(path) as temporary:
      local = temporary / path.name
      _save(local, trees, record, alone=True)
      (local / COMMITTED).unlink(missing_ok=True)  # Orbax's own, of the local folder
      upload_folder(local, path)
    (path / COMMITTED).write_bytes(b"")
  barrier(f"{path} uploaded")


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[pathlib.Path]:
  """The folder of a checkpoint on this host's disk, for the time that Orbax reads it."""
  if isinstance(path, pathlib.Path):
    yield path
    return
  with temporary_folder(path) as temporary:
    download_all(path, path.files(), temporary / path.name, progress=False)
    context = ocp.Context()
    if jax.process_count() > 1:
      from frozen_jax.training.orbax_one_host import set_alone

      set_alone(context)
    with context:
      yield temporary / path.name


def _save(
  path: pathlib.Path, trees: dict[str, Any], record: dict[str, Any], alone: bool = False
) -> None:
  """Saves and, if that fails, waits for Orbax's other threads to end too.

  alone: this host saves and no other one.
  """
  context = ocp.Context()
  context.asynchronous.create_directories_asynchronously = False
  threads = set(threading.enumerate())
  with contextlib.ExitStack() as stack:
    if alone and jax.process_count() > 1:
      from frozen_jax.training.orbax_one_host import saving_alone

      stack.enter_context(saving_alone(context))
    stack.enter_context(silenced_orbax())
    stack.enter_context(context)
    try:
      ocp.save_checkpointables(path, trees, custom_metadata=record)
    except Exception:
      end = time.monotonic() + WAIT_FOR_THREADS
      for thread in set(threading.enumerate()) - threads:
        thread.join(max(end - time.monotonic(), 0))
      time.sleep(SETTLE)  # writes that are under way in TensorStore's own threads
      raise


@contextlib.contextmanager
def silenced_orbax() -> Iterator[None]:
  """Orbax prints tracebacks of its threads; the error is raised as an exception as well."""
  logger = logging.getLogger("absl")
  level, hooks = logger.level, (threading.excepthook, sys.unraisablehook)
  logger.setLevel(logging.CRITICAL)
  threading.excepthook = sys.unraisablehook = lambda _: None
  try:
    yield
  finally:
    logger.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks
