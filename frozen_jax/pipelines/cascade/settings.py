"""The `cascade` section of a config. Imports no jax."""

import dataclasses

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError

CONFIDENCES = ("probability", "margin", "agreement")


@dataclasses.dataclass(frozen=True)
class CascadeSettings:
  """Which questions take the second of two passes."""

  compute_budget: float = setting(
    0.0, "mean passes a question, 1 to 2: the least sure ones take both; 0: all do"
  )
  confidence: str = setting(
    "margin", "of the first pass: margin, probability, or agreement of samples", choices=CONFIDENCES
  )

  def __post_init__(self) -> None:
    if self.compute_budget and not 1 <= self.compute_budget <= 2:
      raise UserError(
        f"cascade.compute_budget is {self.compute_budget}; give passes a row from 1 (never a"
        " second) to 2 (always)"
      )
