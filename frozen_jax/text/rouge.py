"""ROUGE-L: the longest common subsequence of words of a text and a reference (Lin 2004).

The F-measure of precision and recall with equal weights. Not from the usual package, `rouge_score`,
which requires nltk and absl for stemming; without stemming, its default, both give the same numbers
on ASCII text. Words here are of letters and digits of every script, while `rouge_score` drops all
that is not ASCII.
"""

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(prediction: str, references: Sequence[str]) -> float:
  """The best F-measure against a reference, 0 to 1; without any reference it is 0.

  Words are runs of letters and digits in lower case (Unicode's form NFKC). A text without words
  scores 0, also against another one without words.
  """
  predicted = _words(prediction)
  return max((_f_measure(predicted, _words(reference)) for reference in references), default=0.0)


def _words(text: str) -> list[str]:
  return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _f_measure(predicted: list[str], reference: list[str]) -> float:
  common = _longest_common(predicted, reference)
  # Harmonic mean of common / predicted and common / reference.
  return 2 * common / (len(predicted) + len(reference)) if common else 0.0


def _longest_common(a: list[str], b: list[str]) -> int:
  """Length of the longest common subsequence; one row of the usual table is held at a time."""
  row = [0] * (len(b) + 1)
  for word in a:
    above = row
    row = [0]
    for index, other in enumerate(b):
      best = above[index] + 1 if word == other else max(above[index + 1], row[index])
      row.append(best)
  return row[-1]
