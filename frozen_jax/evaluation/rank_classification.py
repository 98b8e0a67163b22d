"""Rank classification: of a row's choices, the model predicts the one of the highest likelihood.

As GPT-3 (Brown et al. 2020) and T0 (Sanh et al. 2022) are evaluated. The log-likelihoods are those
of `models.choice_scoring`. How choices of different lengths are made comparable:

  sum      unchanged: T0's way, which favours short choices
  tokens   the mean over the choice's tokens: GPT-3's way for most tasks; depends on the tokenizer
  bytes    per byte of its text (UTF-8): does not depend on the tokenizer
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from frozen_jax.evaluation.settings import check_normalisation
from frozen_jax.models.choice_scoring import ChoiceQuestion


@dataclasses.dataclass(frozen=True)
class Ranking:
  """predicted: of each row the index of the choice. correct: whether that is right. accuracy:
  percent of rows that are."""

  predicted: list[int]
  correct: list[bool]

  @property
  def accuracy(self) -> float:
    return 100.0 * sum(self.correct) / max(len(self.correct), 1)


def rank(
  questions: Sequence[ChoiceQuestion],
  log_likelihoods: Sequence[Float[np.ndarray, "_"]],
  normalisation: str = "sum",
) -> Ranking:
  """The choice of each row, from the log-likelihoods of `choice_log_likelihoods` in nats.

  Of equals the first. Raises UserError for an unknown normalisation.
  """
  check_normalisation(normalisation)
  predicted = []
  for question, scores in zip(questions, log_likelihoods, strict=True):
    if normalisation == "tokens":
      scores = scores / [len(choice) for choice in question.choices]
    elif normalisation == "bytes":
      scores = scores / np.asarray(question.sizes)
    predicted.append(int(np.argmax(scores)))
  correct = [best in question.labels for best, question in zip(predicted, questions, strict=True)]
  return Ranking(predicted, correct)
