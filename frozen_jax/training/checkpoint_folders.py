"""The folders of checkpoints in a workdir, by their names. Imports no jax.

`workdir/checkpoints/STAGE/00000030/`, one folder a checkpoint, named by the step. It is
`00000030-1` when that step is saved a second time, with its validation, after an interruption.
"""

import contextlib
import os
import pathlib
import re

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"\d{8}(-\d+)?")


def complete_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
  """A stage's complete checkpoints, oldest first: a half-written one never has a plain name."""
  if not folder.is_dir():
    return []
  found = (path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
  return sorted(found, key=step_and_repeat)


def step_and_repeat(path: pathlib.Path) -> tuple[int, int]:
  """The step, and how often that step had been saved before."""
  step, _, repeat = path.name.partition("-")
  return int(step), int(repeat or 0)


def newest_checkpoint(workdir: str | os.PathLike[str], stage: str) -> pathlib.Path | None:
  """The newest complete checkpoint of a stage, if there is one."""
  found = complete_checkpoints(pathlib.Path(workdir) / CHECKPOINTS / stage)
  return found[-1] if found else None


def how_to_train_on(workdir: str | os.PathLike[str]) -> str:
  """How a run goes on whose learning rates fall over all of its steps."""
  return (
    "its learning rates were set for those steps: to train on, let it come to its end, then start"
    f" a new run from it by --workdir=ANOTHER --config.init_from={workdir}"
  )


def saved_step(workdir: str | os.PathLike[str]) -> int:
  """The step from which a run goes on: that of its newest checkpoint; 0 without one."""
  newest = (0.0, 0)
  with contextlib.suppress(OSError):
    for stage in (pathlib.Path(workdir) / CHECKPOINTS).iterdir():
      for path in complete_checkpoints(stage)[-1:]:
        newest = max(newest, (path.stat().st_mtime, step_and_repeat(path)[0]))
  return newest[1]
