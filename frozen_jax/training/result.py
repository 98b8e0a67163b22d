"""What a stage's training leaves: the progress that its checkpoints record, and the result."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from frozen_jax.core.types import Tree
from frozen_jax.training.state import TrainState

ValidationMetrics = dict[str, float | None]  # None: not a finite number


@dataclasses.dataclass(frozen=True)
class TrainingResult:
  """What training a stage gave.

  best               the trained tree that validated best; the last without validation
  last               the trained tree after the last step
  best_step          the step of `best`
  best_metrics       its validation metrics; empty without validation
  steps              steps done (fewer than set when patience ran out)
  seconds            spent on the stage, with validation and checkpoints, over all resumes
  tokens             real text tokens trained on
  tokens_per_second  of them, over the training steps that compiled nothing
  skipped            updates that were not applied: the loss or its gradient was no number
  rolled_back        `{"from": step, "to": step}` of each time that the stage went back for such one
  validation         `{"step": ..., metrics}` of each validation
  checkpoint_bytes   size of the checkpoint on disk
  """

  best: Tree
  last: Tree
  best_step: int
  best_metrics: ValidationMetrics
  steps: int
  seconds: float
  tokens: int
  tokens_per_second: float
  skipped: int
  rolled_back: list[dict[str, int]]
  validation: list[ValidationMetrics]
  checkpoint_bytes: int


@dataclasses.dataclass
class TrainingProgress:
  """What a checkpoint's record holds of the loop, besides the arrays and the data position.

  complete: whether the stage has ended. timed_seconds, timed_tokens: of the steps that compiled
  nothing. skipped_in_a_row: up to the last step. best: the validation, with its step, of the best
  tree; earlier: that before it, where `best` is of a validation which is there only because its
  step is the last. Other fields as in `TrainingResult`.
  """

  complete: bool = False
  seconds: float = 0.0
  tokens: int = 0
  timed_seconds: float = 0.0
  timed_tokens: int = 0
  skipped: int = 0
  skipped_in_a_row: int = 0
  rolled_back: list[dict[str, int]] = dataclasses.field(default_factory=list)
  best: ValidationMetrics | None = None
  earlier: ValidationMetrics | None = None
  validation: list[ValidationMetrics] = dataclasses.field(default_factory=list)

  @classmethod
  def from_record(cls, record: Mapping[str, Any]) -> "TrainingProgress":
    """The progress in a checkpoint's record."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: record[name] for name in names if name in record})


def without_end(
  progress: TrainingProgress,
  best: Tree | None,
  earlier: Tree | None,
  step: int,
  validate_every: int,
) -> Tree | None:
  """Takes back what was done at a step only because it was the last; the best tree without it.

  progress: changed in place. best, earlier: the best tree, and that before the last validation.
  """
  progress.complete = False
  validated = progress.validation[-1:]
  if validated and validated[0]["step"] == step and step % validate_every:
    progress.validation.pop()
    if progress.best == validated[0]:
      best, progress.best = earlier, progress.earlier
  progress.earlier = None
  return best


def untrained_result(tree: Tree, metrics: Mapping[str, float]) -> TrainingResult:
  """The result of a stage whose method trains nothing; metrics: its validation."""
  return TrainingResult(
    best=tree,
    last=tree,
    best_step=0,
    best_metrics=dict(metrics),
    steps=0,
    seconds=0.0,
    tokens=0,
    tokens_per_second=0.0,
    skipped=0,
    rolled_back=[],
    validation=[{"step": 0, **metrics}],
    checkpoint_bytes=0,
  )


def training_result(
  state: TrainState, best: Tree | None, progress: TrainingProgress, checkpoint_bytes: int
) -> TrainingResult:
  """The result of a complete stage; `best`: the best tree, None without a validation."""
  metrics = dict(progress.best or {})
  best_step = int(metrics.pop("step", None) or 0) if progress.best else int(state.step)
  if progress.timed_seconds > 0:
    tokens_per_second = progress.timed_tokens / progress.timed_seconds
  else:
    tokens_per_second = progress.tokens / max(progress.seconds, 1e-9)
  return TrainingResult(
    best=state.trainable if best is None else best,
    last=state.trainable,
    best_step=best_step,
    best_metrics=metrics,
    steps=int(state.step),
    seconds=progress.seconds,
    tokens=progress.tokens,
    tokens_per_second=tokens_per_second,
    skipped=progress.skipped,
    rolled_back=progress.rolled_back,
    validation=progress.validation,
    checkpoint_bytes=checkpoint_bytes,
  )
