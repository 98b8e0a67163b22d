"""How a stage is trained, as a section of a config. Imports no jax."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Self

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainSettings(Section):
  """How a stage is trained: AdamW, linear warm-up and cosine; what is logged and saved meanwhile.

  The last step always has a validation and a checkpoint; the first and the last have a line in
  metrics.jsonl. A subclass names its own section of the config for error messages.
  """

  section: ClassVar[str] = "train"

  steps: int = setting(100, "updates of the trained tree; 0: the stage does not run", at_least=0)
  epochs: float = setting(
    0.0, "passes over the training data, in place of steps; 0: steps count", at_least=0
  )
  batch_size: int = setting(32, "rows of an update", at_least=1)
  accumulate: int = setting(1, "microbatches of an update", at_least=1)
  log_every: int = setting(
    10, "steps between lines of metrics.jsonl", affects_result=False, at_least=1
  )
  validate_every: int = setting(
    25, "steps between validations, which choose the best checkpoint", at_least=1
  )
  validate_examples: int = setting(256, "rows of a validation", at_least=1)
  checkpoint_every: int = setting(25, "steps between checkpoints", affects_result=False, at_least=1)
  patience: int = setting(
    0, "validations in a row without a better one after which training stops; 0: never", at_least=0
  )
  learning_rate: Mapping[str, float] = setting(
    {}, "peak by part of the trained tree; a part without one has its method's default", at_least=0
  )
  warmup_steps: int = setting(10, "updates of linear warm-up", at_least=0)
  final_fraction: float = setting(
    0.1, "of the peak rate, reached by a cosine at the last update", at_least=0, at_most=1
  )
  weight_decay: float = setting(0.01, "decoupled, times the rate; of matrices only", at_least=0)
  clip_norm: float = setting(
    1.0, "gradients are scaled down to this global norm; 0: no limit", at_least=0
  )
  on_nonfinite: str = setting(
    "stop",
    "what happens where a loss or a gradient is no number, or the loss above max_loss; skip: that"
    " update is not applied; rollback: nor are those after the last of checkpoint_every",
    affects_result=False,
    choices=("stop", "skip", "rollback"),
  )
  max_skipped: int = setting(
    10, "skipped updates in a row after which training stops", affects_result=False, at_least=1
  )
  max_rollbacks: int = setting(
    3, "roll-backs of a stage after which training stops", affects_result=False, at_least=1
  )
  max_loss: float = setting(1000.0, "a loss above it counts as no number; 0: no limit", at_least=0)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.steps and self.epochs:
      raise UserError(
        f"{self.section}.steps is {self.steps} and {self.section}.epochs {self.epochs:g}: each says"
        " how long to train; set one of them to 0"
      )
    if self.batch_size % self.accumulate:
      raise UserError(
        f"config.{self.section}.batch_size {self.batch_size} is not divisible by"
        f" {self.section}.accumulate {self.accumulate}; choose a multiple"
      )

  @property
  def trains(self) -> bool:
    """Whether there is anything to train."""
    return bool(self.steps or self.epochs)

  def same_until(self, step: int) -> bool:
    """Whether the first `step` updates have the same rates, whatever the number of steps."""
    return self.final_fraction == 1 or step <= max(self.warmup_steps, 1)

  def for_rows(self, rows: int) -> Self:
    """The same with the steps that the epochs take, where there are epochs.

    rows: of one epoch. The steps are the fewest that draw `epochs * rows` rows.
    """
    if not self.epochs:
      return self
    steps = math.ceil(Fraction(str(self.epochs)) * max(rows, 1) / self.batch_size)
    return dataclasses.replace(self, steps=steps, epochs=0.0)


def check_schedule(settings: TrainSettings, section: str = "") -> None:
  """UserError for more steps of warm-up than there are steps; section: where they stand."""
  if not settings.epochs and settings.warmup_steps > settings.steps:
    raise UserError(
      f"{settings.warmup_steps} warm-up steps do not fit into {settings.steps} steps; lower"
      f" {section or settings.section}.warmup_steps"
    )


def check_learning_rate(rate: float, name: str) -> None:
  """UserError for a learning rate that is no number of 0 or more; `name` names it."""
  if type(rate) not in (int, float) or not math.isfinite(rate) or rate < 0:
    raise UserError(f"{name} is {rate!r}; a learning rate is a number of 0 or more")
