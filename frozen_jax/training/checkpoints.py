"""Checkpoints of a stage (Orbax v1): the training state and the best tree, never the frozen model.

Each is a folder (`training/checkpoint_folders.py`). It holds all that is needed to resume bit by
bit: the state (step, trained tree, optimizer state, key), the trained tree that validated best so
far, and a record (JSON, in Orbax's own metadata file) with the data position of every host, the
validation metrics, the dependencies and the fingerprint of the frozen tree. A save replaces the
previous checkpoint only once it is complete (`training/checkpoint_storage.py`), so whatever
interrupts it leaves the previous one.
"""

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from frozen_jax.config import dependencies as config_dependencies
from frozen_jax.config.dependencies import Dependencies
from frozen_jax.core.disk_errors import refusal
from frozen_jax.core.errors import StoreError, UserError
from frozen_jax.core.files import folder_bytes
from frozen_jax.core.object_store import AnyPath, any_path
from frozen_jax.core.types import Tree
from frozen_jax.sharding.hosts import barrier, gather_bytes, is_first_host
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.checkpoint_folders import (
  CHECKPOINTS,
  complete_checkpoints,
  how_to_train_on,
  step_and_repeat,
)
from frozen_jax.training.checkpoint_storage import clear, local_copy, remove, silenced_orbax, write
from frozen_jax.training.state import TrainState

STEPS = "train.steps"  # as a dependency of a stage


class Restored(NamedTuple):
  """A checkpoint on the current mesh; `best` is None without a validation, `earlier` see `save`."""

  state: TrainState
  best: Tree | None
  earlier: Tree | None
  record: dict[str, Any]


MayDiffer = Callable[[list[str], Mapping[str, Any]], bool]


class Checkpoints:
  """The checkpoints of one stage of one run. On several hosts every host calls each method."""

  def __init__(
    self,
    workdir: str | AnyPath,
    stage: str,
    *,
    dependencies: Dependencies,
    fingerprint: str,
    mesh: Mesh,
  ):
    """Opens the stage's folder and removes what an interrupted save has left there.

    Args:
      workdir: of the run; on several hosts a folder that all of them can read and write.
      stage: the folder's name.
      dependencies: sections of the config and JSON values that must not have changed when a
        checkpoint is restored (`config.dependencies`).
      fingerprint: of the frozen tree.
      mesh: restored arrays are replicated on its devices.
    """
    self.folder = any_path(workdir).absolute() / CHECKPOINTS / stage
    self.workdir = workdir
    self._dependencies = dependencies
    self._fingerprint = fingerprint
    self._mesh = mesh
    if is_first_host():
      clear(self.folder)
    barrier(f"checkpoints of {stage} cleared")

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, rising."""
    return [step_and_repeat(path)[0] for path in complete_checkpoints(self.folder)]

  def size(self) -> int:
    """Bytes of the newest complete checkpoint on disk; 0 without one."""
    found = complete_checkpoints(self.folder)
    return folder_bytes(found[-1]) if found else 0

  def save(
    self,
    state: TrainState,
    best: Tree | None,
    record: dict[str, Any],
    data: Any,
    earlier: Tree | None = None,
    kept: int | None = None,
  ) -> int:
    """Writes the checkpoint of `state.step`, removes older ones, and returns its size in bytes.

    Args:
      state: with its trained tree.
      best: the trained tree that validated best so far.
      record: JSON.
      data: this host's data position: bytes, or anything that JSON holds.
      earlier: the best tree before the last validation, where more steps would not have that.
      kept: the step of an older checkpoint that is not removed.

    Raises:
      UserError: the disk refuses (full, read-only, no permission); older checkpoints stay.
      StoreError: the store fails; they stay, too.
    """
    step = int(state.step)
    positions = gather_bytes(_encode(data))
    record = record | {
      "step": step,
      "dependencies": config_dependencies.record(self._dependencies),
      "frozen_fingerprint": self._fingerprint,
      "data": [position.decode() for position in positions],
    }
    trees = {"state": state, "best": best, "earlier": earlier}
    trees = {name: tree for name, tree in trees.items() if tree is not None}
    older = complete_checkpoints(self.folder)
    repeats = [repeat for saved, repeat in map(step_and_repeat, older) if saved == step]
    path = self.folder / (f"{step:08d}-{max(repeats) + 1}" if repeats else f"{step:08d}")
    barrier(f"{path} named")  # before any host writes: all have listed the same folder
    try:
      write(path, trees, record)
    except StoreError:
      raise  # what is half uploaded is removed by the next run
    except Exception as error:
      with contextlib.suppress(OSError, StoreError):
        if is_first_host():
          clear(self.folder)
      if not (reason := refusal(error)):
        raise
      raise UserError(self._disk_message(step, reason)) from error
    if is_first_host():
      for checkpoint, (saved, _) in zip(older, map(step_and_repeat, older), strict=True):
        if saved == step or saved != kept:
          remove(checkpoint)
    return folder_bytes(path)

  def restore(
    self,
    template: TrainState,
    may_differ: MayDiffer = lambda names, record: False,
    step: int | None = None,
  ) -> Restored | None:
    """The newest checkpoint, or None when there is none.

    Args:
      template: a state of the same structure (arrays or shapes), such as that before step 1.
      may_differ: whether a checkpoint of this record is taken although the named dependencies are
        others than it was saved with.
      step: whose checkpoint is restored in place of the newest.

    Raises:
      UserError: it belongs to another frozen model or another configuration, or is unreadable.
    """
    found = complete_checkpoints(self.folder)
    found = [path for path in found if step in (None, step_and_repeat(path)[0])]
    if not found:
      return None
    path = found[-1]
    record = read_record(path)
    self._check(record, path, may_differ)
    abstract = {"state": _abstract(template, self._mesh)}
    for name in ("best", "earlier"):
      if record.get(name) is not None:
        abstract[name] = abstract["state"].trainable
    trees = _load(path, abstract)
    return Restored(trees["state"], trees.get("best"), trees.get("earlier"), record)

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
      f"{self.folder} was saved by {len(positions)} hosts and each was at another position of its "
      f"data; resume it with {len(positions)} hosts"
    )

  def _check(self, record: Mapping[str, Any], path: AnyPath, may_differ: MayDiffer) -> None:
    if record["frozen_fingerprint"] != self._fingerprint:
      raise UserError(
        f"{path} was trained on another frozen model (fingerprint "
        f"{record['frozen_fingerprint'][:12]}, this one is {self._fingerprint[:12]}); give another "
        "--workdir or the model that it was trained on"
      )
    changed = config_dependencies.changed(self._dependencies, record["dependencies"])
    if changed and not may_differ(changed, record):
      remedy = "give another --workdir, or the configuration that it was started with"
      if changed == [STEPS]:
        remedy = how_to_train_on(self.workdir, self.folder.name)
      raise UserError(
        f"{path} belongs to a run of another configuration ({', '.join(changed)} changed); {remedy}"
      )

  def _disk_message(self, step: int, reason: str) -> str:
    latest = self.latest()
    intact = (
      "no checkpoint of this stage exists yet"
      if latest is None
      else f"the checkpoint of step {latest} is intact"
    )
    return (
      f"the checkpoint of step {step} could not be written to {self.folder} ({reason}); {intact}; "
      "free some space or fix the folder's permissions and run the same command again"
    )


def recorded_steps(record: Mapping[str, Any]) -> int | None:
  """The number of steps that the stage was to have when this record was saved."""
  train = record["dependencies"].get("train", {})
  return train.get("steps")


def read_record(path: AnyPath) -> dict[str, Any]:
  """The record of one checkpoint folder.

  Raises:
    UserError: it cannot be read.
  """
  return _metadata(path)[1]


def load_best(
  workdir: str | AnyPath, stage: str, mesh: Mesh | None = None
) -> tuple[Tree, dict[str, Any]]:
  """The best trained tree of a stage (the last one without validation) and the record.

  Its structure need not be known: nested dicts come back as they were saved.

  Args:
    workdir: of a run.
    stage: one of its stages.
    mesh: the arrays are replicated on its devices; None: on this host's first device.

  Raises:
    UserError: the stage has no checkpoint, or it is unreadable.
  """
  folder = any_path(workdir).absolute() / CHECKPOINTS / stage
  found = complete_checkpoints(folder)
  if not found:
    raise UserError(f"{folder} holds no checkpoint; train the stage {stage!r} first")
  path = found[-1]
  sharding = (
    replicated(mesh)
    if mesh is not None
    else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  )
  shapes, record = _metadata(path)
  name = "best" if "best" in shapes else "state"
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes[name]
  )
  tree = _load(path, {name: abstract})[name]
  return (tree if name == "best" else tree["trainable"]), record


def _metadata(path: AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
  """The shapes of the stored trees by name, and the record."""
  try:
    with local_copy(path) as local, silenced_orbax():
      metadata = ocp.checkpointables_metadata(local)
  except (UserError, StoreError):
    raise
  except Exception as error:
    raise _unreadable(path, error) from error
  record = dict(metadata.custom_metadata or {})
  has_all = {"frozen_fingerprint", "dependencies"} <= record.keys()
  if not has_all or not isinstance(metadata.metadata, Mapping):
    raise _unreadable(path, ValueError("its metadata is damaged"))
  return dict(metadata.metadata), record


def _load(path: AnyPath, abstract: dict[str, Any]) -> dict[str, Any]:
  try:
    with local_copy(path) as local, silenced_orbax():
      return ocp.load_checkpointables(local, abstract)
  except (UserError, StoreError):
    raise
  except Exception as error:
    raise _unreadable(path, error) from error


def _unreadable(path: AnyPath, error: BaseException) -> UserError:
  while error.__cause__ is not None:  # Orbax says of whatever fails that a handler is incompatible
    error = error.__cause__
  reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
  return UserError(
    f"{path} cannot be read ({reason}); run the same command again, and if that changes nothing,"
    " remove that folder to start its stage anew"
  )


def _abstract(tree: Any, mesh: Mesh) -> Any:
  sharding = replicated(mesh)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def _encode(data: Any) -> bytes:
  if isinstance(data, bytes):
    return json.dumps({"base64": base64.b64encode(data).decode()}).encode()
  return json.dumps({"json": data}).encode()


def _decode(text: str) -> Any:
  data = json.loads(text)
  return base64.b64decode(data["base64"]) if "base64" in data else data["json"]
