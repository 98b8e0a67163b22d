"""What is scored, and how, as a section of a config. Imports no jax."""

import dataclasses

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.decoding.settings import GenerationSettings

NORMALISATIONS = ("sum", "tokens", "bytes")


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(GenerationSettings):
  """How a tuned model is scored: the `evaluate` section."""

  max_examples: int = setting(500, "of data.test, and of each source of data.held_out", at_least=1)
  normalisation: str = setting(
    "sum", "of the log-likelihoods that rank choices", choices=NORMALISATIONS
  )
  general_text: str = setting(
    "", "plain text on which the LM's perplexity is measured before and after training"
  )
  skills: tuple[str, ...] = setting(
    (), "stages whose answers are compared with those after the later stages"
  )


def check_normalisation(name: str) -> None:
  """UserError for a normalisation that does not exist."""
  if name not in NORMALISATIONS:
    raise UserError(f"normalisation {name!r} is not known; give one of {', '.join(NORMALISATIONS)}")
