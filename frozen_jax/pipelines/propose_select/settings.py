"""The `candidates` section of a config: what pass one proposes, and how pass two is shown it.

Imports no jax.
"""

import dataclasses
import string
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError

_FIELDS = {
  "prompt": {"question", "candidates"},
  "candidate": {"text", "count", "share", "likelihood"},
  "separator": set(),
}


@dataclasses.dataclass(frozen=True)
class CandidateTemplate(Section):
  """The text that pass two reads. Raises UserError for fields that are malformed or missing."""

  section: ClassVar[str] = "candidates.template"

  prompt: str = setting(
    "Question: {question}\nProposed answers: {candidates}\nAnswer:", "the whole text"
  )
  candidate: str = setting(
    "{text} ({likelihood}%)", "one candidate; {count} and {share} (percent) of the samples too"
  )
  separator: str = setting(", ", "between candidates")

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, allowed in _FIELDS.items():
      try:
        parts = string.Formatter().parse(getattr(self, name))
        used = {field for _, field, _, _ in parts if field is not None}
      except ValueError as error:
        raise UserError(
          f"candidates.template.{name} is malformed ({error}); double those braces that are text"
        ) from error
      if used - allowed:
        raise UserError(
          f"candidates.template.{name} has {', '.join(sorted(used - allowed))}; it may hold"
          f" {', '.join(sorted(allowed)) or 'no fields'}"
        )
      missing = (allowed if name == "prompt" else allowed & {"text"}) - used
      if missing:
        raise UserError(f"candidates.template.{name} lacks {{{missing.pop()}}}; add it")


@dataclasses.dataclass(frozen=True)
class CandidateSampling(Section):
  """What the samples depend on."""

  section: ClassVar[str] = "candidates"

  samples: int = setting(16, "answers sampled for each question", at_least=1)
  temperature: float = setting(1.0, "of the sampling; at 0 all samples would be one", above=0)
  top_k: int = setting(0, "sample among the k likeliest tokens; 0: all", at_least=0)
  top_p: float = setting(
    1.0, "then among the fewest likeliest with this share; 1: all", above=0, at_most=1
  )


@dataclasses.dataclass(frozen=True)
class CandidateRendering(Section):
  """What the texts of pass two depend on, besides the samples."""

  section: ClassVar[str] = "candidates"

  max_candidates: int = setting(3, "candidates shown at most", at_least=1)
  template: CandidateTemplate = setting(CandidateTemplate(), "the text that pass two reads")


@dataclasses.dataclass(frozen=True)
class CandidateSettings(CandidateSampling, CandidateRendering):
  """The whole section."""

  proposer: str = setting("answer", "the stage whose prompt proposes the answers", nonempty=True)
  folds: int = setting(
    4, "training questions are answered by prompts tuned on the other folds", at_least=2
  )
  questions: int = setting(
    0, "training questions that are sampled for pass two; 0: all", at_least=0
  )
  learn_from: str = setting(
    "all", "of these: all, or those that are shown a right candidate", choices=("all", "right")
  )
  permutations: int = setting(
    4, "times that each is shown, its candidates in another order", at_least=1
  )
