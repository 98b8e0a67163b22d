"""The `candidates` section of a config: what pass one proposes, and how pass two is shown it.

Imports no jax.
"""

import dataclasses
import string

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError

_FIELDS = {
  "prompt": {"question", "candidates"},
  "candidate": {"text", "count", "share", "likelihood"},
  "separator": set(),
}


@dataclasses.dataclass(frozen=True)
class CandidateTemplate:
  """The text that pass two reads. Raises UserError for fields that are malformed or missing."""

  prompt: str = setting(
    "Question: {question}\nProposed answers: {candidates}\nAnswer:", "the whole text"
  )
  candidate: str = setting(
    "{text} ({likelihood}%)", "one candidate; {count} and {share} (percent) of the samples too"
  )
  separator: str = setting(", ", "between candidates")

  def __post_init__(self) -> None:
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
class CandidateSampling:
  """What the samples depend on."""

  samples: int = setting(16, "answers sampled for each question")
  temperature: float = setting(1.0, "of the sampling, above 0")
  top_k: int = setting(0, "sample among the k likeliest tokens; 0: all")
  top_p: float = setting(1.0, "then among the fewest likeliest with this share; 1: all")

  def __post_init__(self) -> None:
    _at_least(self, "samples", 1)
    if self.temperature == 0:
      raise UserError("candidates.temperature is 0, so all samples would be one; give some, as 1.0")


@dataclasses.dataclass(frozen=True)
class CandidateRendering:
  """What the texts of pass two depend on, besides the samples."""

  max_candidates: int = setting(3, "candidates shown at most")
  template: CandidateTemplate = setting(CandidateTemplate(), "the text that pass two reads")


@dataclasses.dataclass(frozen=True)
class CandidateSettings(CandidateSampling, CandidateRendering):
  """The whole section."""

  proposer: str = setting("answer", "the stage whose prompt proposes the answers")
  folds: int = setting(4, "training questions are answered by prompts tuned on the other folds")
  questions: int = setting(0, "training questions that are sampled for pass two; 0: all")
  learn_from: str = setting(
    "all", "of these; or right: those that are shown a right candidate", choices=("all", "right")
  )
  permutations: int = setting(4, "times that each is shown, its candidates in another order")

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, least in (("max_candidates", 1), ("permutations", 1), ("questions", 0), ("folds", 2)):
      _at_least(self, name, least)


def _at_least(section: CandidateSampling, name: str, least: int) -> None:
  value = getattr(section, name)
  if value < least:
    raise UserError(f"candidates.{name} is {value}; give at least {least}")
