"""The `cascade` section of a config. Imports no jax."""

import dataclasses
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.evaluation.gate import MEASURES, check_compute_budget


@dataclasses.dataclass(frozen=True)
class CascadeSettings(Section):
  """Which questions take the second of two passes."""

  section: ClassVar[str] = "cascade"

  compute_budget: float = setting(
    0.0,
    "mean passes of the LM a question, 1 to 2: the least sure ones take both; 0: all do",
    at_least=0,
    at_most=2,
  )
  confidence: str = setting(
    "margin", "how sure the first pass is; agreement: of samples", choices=MEASURES
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.compute_budget:
      check_compute_budget(self.compute_budget, "config.cascade.compute_budget")
