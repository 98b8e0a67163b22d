"""Scores of generated answers in percent: exact match and F1 by the rules of SQuAD, ROUGE-L."""

from collections.abc import Sequence

from frozen_jax.text import answers
from frozen_jax.text.rouge import rouge_l


def grade(predictions: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
  """Mean exact match and F1 in percent; each prediction against its accepted answers."""
  pairs = list(zip(predictions, accepted, strict=True))
  exact_matches = sum(
    answers.exact_match(prediction, references) for prediction, references in pairs
  )
  f1 = sum(answers.f1(prediction, references) for prediction, references in pairs)
  count = max(len(pairs), 1)
  return {"exact_match": 100.0 * exact_matches / count, "f1": 100.0 * f1 / count}


def grade_free_form(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
  """`exact_match`, `f1` and `rouge_l` of one free-form answer, in percent."""
  return grade([prediction], [accepted]) | {"rouge_l": 100.0 * rouge_l(prediction, accepted)}
