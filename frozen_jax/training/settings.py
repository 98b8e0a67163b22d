"""How a stage is trained, as a section of a config. Imports no jax."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Self

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """How a stage is trained: AdamW, linear warm-up and cosine; what is logged and saved meanwhile.

  The last step always has a validation and a checkpoint; the first and the last have a line in
  metrics.jsonl. A subclass names its own section of the config for error messages.
  """

  section: ClassVar[str] = "train"

  steps: int = setting(100, "updates of the trained tree; 0: the stage does not run")
  epochs: float = setting(0.0, "passes over the training data, in place of steps; 0: steps count")
  batch_size: int = setting(32, "rows of an update")
  accumulate: int = setting(1, "microbatches of an update")
  log_every: int = setting(10, "steps between lines of metrics.jsonl", affects_result=False)
  validate_every: int = setting(25, "steps between validations, which choose the best checkpoint")
  validate_examples: int = setting(256, "rows of a validation")
  checkpoint_every: int = setting(25, "steps between checkpoints", affects_result=False)
  patience: int = setting(
    0, "validations in a row without a better one after which training stops; 0: never"
  )
  learning_rate: Mapping[str, float] = setting(
    {}, "peak by part of the trained tree; a part without one has its method's default"
  )
  warmup_steps: int = setting(10, "updates of linear warm-up")
  final_fraction: float = setting(0.1, "of the peak rate, reached by a cosine at the last update")
  weight_decay: float = setting(0.01, "decoupled, times the rate; of matrices only")
  clip_norm: float = setting(1.0, "gradients are scaled down to this global norm; 0: no limit")

  def __post_init__(self) -> None:
    least = dict.fromkeys(("steps", "patience", "warmup_steps"), 0)
    least |= dict.fromkeys(("batch_size", "accumulate", "log_every", "validate_every"), 1)
    least |= dict.fromkeys(("validate_examples", "checkpoint_every"), 1)
    for name, minimum in least.items():
      if getattr(self, name) < minimum:
        raise UserError(
          f"{self.section}.{name} is {getattr(self, name)}; it must be at least {minimum}"
        )
    if not 0 <= self.epochs < math.inf:
      raise UserError(f"{self.section}.epochs is {self.epochs}; it must be a number of 0 or more")
    if self.steps and self.epochs:
      raise UserError(
        f"{self.section}.steps is {self.steps} and {self.section}.epochs {self.epochs:g}: each says"
        " how long to train; set one of them to 0"
      )
    if self.batch_size % self.accumulate:
      raise UserError(
        f"{self.section}.batch_size {self.batch_size} is not divisible by"
        f" {self.section}.accumulate {self.accumulate}; choose a multiple"
      )
    for part, rate in self.learning_rate.items():
      check_learning_rate(rate, f"{self.section}.learning_rate.{part}")
    for name in ("weight_decay", "clip_norm"):
      if not 0 <= getattr(self, name) < math.inf:
        raise UserError(
          f"{self.section}.{name} is {getattr(self, name)}; it must be a number of 0 or more"
        )
    if not 0 <= self.final_fraction <= 1:
      raise UserError(f"{self.section}.final_fraction {self.final_fraction} is not between 0 and 1")

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


def check_learning_rate(rate: float, name: str) -> None:
  """UserError for a learning rate that is no number of 0 or more; `name` names it."""
  if type(rate) not in (int, float) or not math.isfinite(rate) or rate < 0:
    raise UserError(f"{name} is {rate!r}; a learning rate is a number of 0 or more")
