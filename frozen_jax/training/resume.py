"""What a stage goes on from: the checkpoint it is resumed from, or goes back to.

`metrics.jsonl` then keeps the lines up to that checkpoint alone: the rest is written again.
"""

import functools
from collections.abc import Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.training.checkpoints import STEPS, Checkpoints, Restored, recorded_steps
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.result import TrainingProgress, without_end
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import TrainState
from frozen_jax.training.timed_batches import Batches

Position = tuple[TrainState, Tree | None, TrainingProgress]


def resume(
  checkpoints: Checkpoints,
  writer: MetricsWriter,
  batches: Batches,
  state: TrainState,
  settings: TrainSettings,
) -> Position:
  """State, best tree and progress of the newest checkpoint; without one those of the start.

  state: that before step 1. Sets the batches to the checkpoint's position.
  """
  restored = checkpoints.restore(state, functools.partial(_is_beginning_of, settings))
  if restored is None:
    writer.truncate(checkpoints.folder.name, -1)
    return state, None, TrainingProgress()
  batches.set_state(checkpoints.data_position(restored.record))
  return _position(restored, checkpoints, writer, settings)


def roll_back(
  checkpoints: Checkpoints,
  writer: MetricsWriter,
  state: TrainState,
  settings: TrainSettings,
  step: int,
) -> Position:
  """State, best tree and progress of the checkpoint of a step; the batches stay where they are."""
  restored = checkpoints.restore(state, functools.partial(_is_beginning_of, settings), step)
  if restored is None:
    raise UserError(f"{checkpoints.folder} has no checkpoint of step {step} any more")
  return _position(restored, checkpoints, writer, settings)


def _position(
  restored: Restored, checkpoints: Checkpoints, writer: MetricsWriter, settings: TrainSettings
) -> Position:
  """What a checkpoint holds, without what was done in it only because its step was the last."""
  best, progress = restored.best, TrainingProgress.from_record(restored.record)
  step, rewritten = int(restored.state.step), set()
  if recorded_steps(restored.record) not in (None, settings.steps):
    best = without_end(progress, best, restored.earlier, step, settings.validate_every)
    rewritten |= {"train"} if step > 1 and step % settings.log_every else set()
  if not any(entry["step"] == step for entry in progress.validation):
    rewritten.add("validation")
  writer.truncate(checkpoints.folder.name, step, rewritten)
  return restored.state, best, progress


def _is_beginning_of(
  settings: TrainSettings, differing: list[str], record: Mapping[str, Any]
) -> bool:
  """Whether what is saved is what the first steps of a stage with these settings give."""
  step, best = record["step"], record.get("best")
  lost = (
    "earlier" not in record and best and best["step"] == step and step % settings.validate_every
  )
  return differing == [STEPS] and step < settings.steps and settings.same_until(step) and not lost
