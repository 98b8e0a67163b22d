"""How answers are generated, as a section of a config. Imports no jax."""

import dataclasses

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
  """How a tuned model answers questions; part of the `evaluate` section."""

  max_new_tokens: int = setting(16, "tokens of an answer at most")
  num_beams: int = setting(1, "above 1 answers are found by beam search, else they are greedy")
  batch_size: int = setting(64, "rows that are read or decoded at once")

  def __post_init__(self) -> None:
    for name in ("max_new_tokens", "num_beams", "batch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"evaluate.{name} is {getattr(self, name)}; it must be at least 1")
