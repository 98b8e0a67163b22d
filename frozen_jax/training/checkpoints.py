"""Checkpoints of a stage (Orbax v1): what is trained and where it stands, never the frozen model.

Layout: `workdir/checkpoints/STAGE/00000030/`, one folder a checkpoint, named by the step
(`00000030-1` when that step is saved a second time, with its validation, after an interruption). It
holds all that a run needs to go on bit by bit: the state (step, trained tree, optimizer state,
key), the trained tree that validated best so far, and a record (JSON, in Orbax's own metadata
file) with the data position of every host, the validation figures, the configuration and the
fingerprint of the frozen tree. A save replaces the previous checkpoint only once it is complete
(Orbax writes beside and renames), so whatever interrupts it leaves the previous one.
"""

import base64
import contextlib
import errno
import json
import logging
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.sharding.hosts import barrier, gather_bytes, is_first_host
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.state import TrainState

FOLDER = "checkpoints"
NAME = re.compile(r"\d{8}(-\d+)?")
HALF_WRITTEN = re.compile(r".*(\.orbax-checkpoint-tmp.*|\.removed)")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
WAIT_FOR_THREADS, SETTLE = 5.0, 0.5  # seconds, after a save that failed
DISK_WORDS = ("No space left", "Disk quota exceeded", "Read-only file system", "Permission denied")


class Restored(NamedTuple):
  """A checkpoint as it was saved, on the current mesh; `best` is None without a validation."""

  state: TrainState
  best: Tree | None
  record: dict[str, Any]


class Checkpoints:
  """The checkpoints of one stage of one run. On several hosts every host calls each method."""

  def __init__(
    self, workdir: Any, stage: str, *, config: Mapping[str, Any], fingerprint: str, mesh: Mesh
  ):
    """Opens the stage's folder and clears what an interrupted save has left there.

    Args:
      workdir: of the run; on several hosts a folder that all of them see.
      stage: the folder's name.
      config: whatever must be the same for a resume to make sense (JSON).
      fingerprint: of the frozen tree.
      mesh: where restored arrays go, whole on every device.
    """
    self.folder = pathlib.Path(workdir).absolute() / FOLDER / stage
    self._config = json.loads(json.dumps(config))
    self._fingerprint = fingerprint
    self._mesh = mesh
    if is_first_host():
      _clear(self.folder)
    barrier(f"checkpoints of {stage} cleared")

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    complete = _complete(self.folder)
    return _order(complete[-1])[0] if complete else None

  def size(self) -> int:
    """Bytes of the newest complete checkpoint on disk; 0 without one."""
    complete = _complete(self.folder)
    return _bytes(complete[-1]) if complete else 0

  def save(self, state: TrainState, best: Tree | None, record: dict[str, Any], data: Any) -> int:
    """Writes the checkpoint of `state.step`, removes older ones, and returns its size in bytes.

    Args:
      state: with its trained tree.
      best: the trained tree that validated best so far.
      record: JSON.
      data: this host's data position: bytes, or anything that JSON holds.

    Raises:
      UserError: the disk refuses (full, read-only, no permission); older checkpoints stay.
    """
    step = int(state.step)
    positions = gather_bytes(_encode(data))
    record = record | {
      "step": step,
      "config": self._config,
      "frozen_fingerprint": self._fingerprint,
      "data": [position.decode() for position in positions],
    }
    trees = {"state": state} if best is None else {"state": state, "best": best}
    older = _complete(self.folder)
    again = max((_order(p)[1] + 1 for p in older if _order(p)[0] == step), default=0)
    path = self.folder / (f"{step:08d}-{again}" if again else f"{step:08d}")
    barrier(f"{path} named")  # before anyone writes: all have looked at the same folder
    try:
      _write(path, trees, record)
    except Exception as error:
      with contextlib.suppress(OSError):
        if is_first_host():
          _clear(self.folder)
      if not _is_disk_error(error):
        raise
      raise UserError(self._disk_message(step, error)) from error
    if is_first_host():
      for checkpoint in older:
        _remove(checkpoint)
    return _bytes(path)

  def restore(self, like: TrainState) -> Restored | None:
    """The newest checkpoint, or None when there is none.

    Args:
      like: a state of the same structure (arrays or shapes), such as a freshly made one.

    Raises:
      UserError: it belongs to another frozen model or another configuration, or is unreadable.
    """
    complete = _complete(self.folder)
    if not complete:
      return None
    path = complete[-1]
    record = read_record(path)
    self._check(record, path)
    abstract = {"state": _abstract(like, self._mesh)}
    if record.get("best") is not None:
      abstract["best"] = abstract["state"].trainable
    trees = _load(path, abstract)
    return Restored(trees["state"], trees.get("best"), record)

  def data_position(self, record: Mapping[str, Any]) -> Any:
    """This host's data position out of a record, as it was given to `save`.

    Raises:
      UserError: saved by another number of hosts, each at a position of its own.
    """
    positions = record["data"]
    if len(positions) == jax.process_count():
      return _decode(positions[jax.process_index()])
    if len(set(positions)) == 1:
      return _decode(positions[0])
    raise UserError(
      f"{self.folder} was saved by {len(positions)} hosts and each was at another place of its "
      f"data; resume it with {len(positions)} hosts"
    )

  def _check(self, record: Mapping[str, Any], path: pathlib.Path) -> None:
    if record["frozen_fingerprint"] != self._fingerprint:
      raise UserError(
        f"{path} was trained on another frozen model (fingerprint "
        f"{record['frozen_fingerprint'][:12]}, this one is {self._fingerprint[:12]}); give another "
        "--workdir or the model that it was trained on"
      )
    difference = _difference(record["config"], self._config)
    if difference:
      raise UserError(
        f"{path} belongs to a run of another configuration ({difference}); give another --workdir, "
        "or the configuration that it was started with"
      )

  def _disk_message(self, step: int, error: Exception) -> str:
    kept = self.latest()
    stands = (
      "no checkpoint of this stage exists yet"
      if kept is None
      else (f"the checkpoint of step {kept} is intact")
    )
    reason = str(error).splitlines()[0][:200]
    return (
      f"the checkpoint of step {step} could not be written to {self.folder} ({reason}); {stands}; "
      "free some space or mend the folder's permissions and run the same command again"
    )


def read_record(path: pathlib.Path) -> dict[str, Any]:
  """The record of one checkpoint folder.

  Raises:
    UserError: it cannot be read.
  """
  return _metadata(path)[1]


def load_best(workdir: Any, stage: str, mesh: Mesh | None = None) -> tuple[Tree, dict[str, Any]]:
  """The best trained tree of a stage (the last one without validation) and the record.

  Needs no knowledge of its structure: nested dicts come back as they were saved.

  Args:
    workdir: of a run.
    stage: one of its stages.
    mesh: puts the arrays whole on every device of it; None on this host's first device.

  Raises:
    UserError: the stage has no checkpoint, or it is unreadable.
  """
  folder = pathlib.Path(workdir).absolute() / FOLDER / stage
  complete = _complete(folder)
  if not complete:
    raise UserError(f"{folder} holds no checkpoint; train the stage {stage!r} first")
  path = complete[-1]
  where = (
    replicated(mesh)
    if mesh is not None
    else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  )
  shapes, record = _metadata(path)
  name = "best" if "best" in shapes else "state"
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), shapes[name]
  )
  tree = _load(path, {name: abstract})[name]
  return (tree if name == "best" else tree["trainable"]), record


def _complete(folder: pathlib.Path) -> list[pathlib.Path]:
  """The complete checkpoints, oldest first: a half-written one never has a plain name."""
  if not folder.is_dir():
    return []
  return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir()), key=_order)


def _order(path: pathlib.Path) -> tuple[int, int]:
  """The step, and how often that step had been saved before."""
  step, _, again = path.name.partition("-")
  return int(step), int(again or 0)


def _clear(folder: pathlib.Path) -> None:
  if folder.is_dir():
    for path in folder.iterdir():
      if HALF_WRITTEN.fullmatch(path.name):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: pathlib.Path) -> None:
  """Removes a checkpoint; renamed first, so that it is never seen half removed."""
  gone = path.with_name(path.name + ".removed")
  path.rename(gone)
  shutil.rmtree(gone, ignore_errors=True)


def _write(path: pathlib.Path, trees: dict[str, Any], record: dict[str, Any]) -> None:
  """Saves and, where that fails, waits for Orbax's other threads to give up too."""
  context = ocp.Context()
  context.asynchronous.create_directories_asynchronously = False
  threads = set(threading.enumerate())
  with _quiet(), context:
    try:
      ocp.save_checkpointables(path, trees, custom_metadata=record)
    except Exception:
      end = time.monotonic() + WAIT_FOR_THREADS
      for thread in set(threading.enumerate()) - threads:
        thread.join(max(end - time.monotonic(), 0))
      time.sleep(SETTLE)  # writes that are under way in TensorStore's own threads
      raise


def _metadata(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The shapes of the stored trees by name, and the record."""
  try:
    with _quiet():
      found = ocp.checkpointables_metadata(path)
  except Exception as error:
    raise _unreadable(path, error) from error
  record = dict(found.custom_metadata or {})
  if "frozen_fingerprint" not in record or not isinstance(found.metadata, Mapping):
    raise _unreadable(path, ValueError("its metadata is damaged"))
  return dict(found.metadata), record


def _load(path: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
  try:
    with _quiet():
      return ocp.load_checkpointables(path, abstract)
  except Exception as error:
    raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> UserError:
  reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
  return UserError(f"{path} cannot be read ({reason}); remove that folder to start its stage anew")


def _abstract(tree: Any, mesh: Mesh) -> Any:
  whole = replicated(mesh)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree)


def _bytes(path: pathlib.Path) -> int:
  return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _encode(data: Any) -> bytes:
  if isinstance(data, bytes):
    return json.dumps({"base64": base64.b64encode(data).decode()}).encode()
  return json.dumps({"json": data}).encode()


def _decode(text: str) -> Any:
  data = json.loads(text)
  return base64.b64decode(data["base64"]) if "base64" in data else data["json"]


def _difference(then: Any, now: Any, path: str = "") -> str:
  """The first place where two JSON values differ, in words; empty when they are equal."""
  if isinstance(then, dict) and isinstance(now, dict):
    for key in sorted({*then, *now}):
      where = f"{path}.{key}" if path else key
      if key not in then or key not in now:
        return f"{where} is {'new' if key in now else 'gone'}"
      if found := _difference(then[key], now[key], where):
        return found
    return ""
  return "" if then == now else f"{path} was {then!r} and is {now!r}"


def _is_disk_error(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
      return True
    if any(word in str(error) for word in DISK_WORDS):
      return True
    error = error.__cause__ or error.__context__
  return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Orbax prints tracebacks of its threads; the error itself reaches us as an exception."""
  logger = logging.getLogger("absl")
  level, hooks = logger.level, (threading.excepthook, sys.unraisablehook)
  logger.setLevel(logging.CRITICAL)
  threading.excepthook = sys.unraisablehook = lambda _: None
  try:
    yield
  finally:
    logger.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks
