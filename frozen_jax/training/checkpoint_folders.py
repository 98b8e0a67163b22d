"""The folders of checkpoints in a workdir, by their names. Imports no jax.

`workdir/checkpoints/STAGE/00000030/`, one folder a checkpoint, named by the step. It is
`00000030-1` when that step is saved a second time, with its validation, after an interruption. On
an object store, where no folder is renamed, a checkpoint is complete when it holds `COMMITTED`.
"""

import contextlib
import re

from frozen_jax.core.errors import StoreError
from frozen_jax.core.object_store import AnyPath, StorePath, any_path

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"\d{8}(-\d+)?")
COMMITTED = "commit_success.txt"  # as Orbax marks its own on Google Cloud Storage


def complete_checkpoints(folder: AnyPath) -> list[AnyPath]:
  """A stage's complete checkpoints, oldest first: a half-written one never has a plain name."""
  found: list[AnyPath]
  if isinstance(folder, StorePath):
    found = [file.parent for file in folder.files() if file.name == COMMITTED]
    found = [path for path in found if path.parent == folder and NAME.fullmatch(path.name)]
  elif folder.is_dir():
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
  else:
    found = []
  return sorted(found, key=step_and_repeat)


def step_and_repeat(path: AnyPath) -> tuple[int, int]:
  """The step, and how often that step had been saved before."""
  step, _, repeat = path.name.partition("-")
  return int(step), int(repeat or 0)


def newest_checkpoint(workdir: str | AnyPath, stage: str) -> AnyPath | None:
  """The newest complete checkpoint of a stage, if there is one."""
  found = complete_checkpoints(any_path(workdir) / CHECKPOINTS / stage)
  return found[-1] if found else None


def how_to_train_on(workdir: str | AnyPath, stage: str) -> str:
  """How a stage goes on whose learning rates fall over all of its steps."""
  return (
    "its learning rates were set for those steps: to train on, let it come to its end, then start"
    f" a new run from it by --workdir=ANOTHER --config.stage_order={stage}"
    f" --config.init_from={workdir}/adapters/{stage}"
  )


def saved_step(workdir: str | AnyPath) -> int:
  """The step from which a run goes on: that of its newest checkpoint; 0 without one."""
  newest = (0.0, 0)
  with contextlib.suppress(OSError, StoreError):
    for stage in (any_path(workdir) / CHECKPOINTS).iterdir():
      for path in complete_checkpoints(stage)[-1:]:
        dated = path / COMMITTED if isinstance(path, StorePath) else path
        newest = max(newest, (dated.stat().st_mtime, step_and_repeat(path)[0]))
  return newest[1]
