"""Scores of generated answers: exact match and F1 in percent, by the rules of SQuAD."""

from collections.abc import Sequence

from frozen_jax.text import answers


def grade(predictions: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
  """Mean exact match and F1 in percent; each prediction against its accepted answers."""
  pairs = list(zip(predictions, accepted, strict=True))
  exact = sum(answers.exact_match(prediction, right) for prediction, right in pairs)
  overlap = sum(answers.f1(prediction, right) for prediction, right in pairs)
  count = max(len(pairs), 1)
  return {"exact_match": 100.0 * exact / count, "f1": 100.0 * overlap / count}
