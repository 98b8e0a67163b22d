"""How answers are generated, as a section of a config. Imports no jax."""

import dataclasses
from typing import ClassVar

from frozen_jax.config.section import Section, setting


@dataclasses.dataclass(frozen=True)
class GenerationSettings(Section):
  """How a tuned model answers questions; part of the `evaluate` section."""

  section: ClassVar[str] = "evaluate"

  max_new_tokens: int = setting(16, "tokens of an answer at most", at_least=1)
  num_beams: int = setting(
    1, "above 1 answers are found by beam search, else they are greedy", at_least=1
  )
  batch_size: int = setting(64, "rows that are read or decoded at once", at_least=1)
