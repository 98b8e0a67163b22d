"""The comparison of a generated answer with the accepted ones, as in SQuAD's evaluation.

Normalisation, exact match and F1 follow the official SQuAD evaluation (Rajpurkar et al., 2016),
with two additions for text that is not ASCII: characters are first normalised to Unicode's form
NFKC (full-width letters, ligatures, accents typed as two characters), and all of Unicode's
punctuation is removed, not only ASCII's. Accents are kept: an answer without them is another
string.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from frozen_jax.text.scripts import is_spaceless

_ARTICLES = re.compile(r"\b(a|an|the)\b")


class _PunctuationRemoval(dict[int, int | None]):
  """A table for `str.translate`, filled on access: None removes a character (punctuation)."""

  def __missing__(self, code: int) -> int | None:
    is_punctuation = unicodedata.category(chr(code)).startswith("P")
    return self.setdefault(code, None if is_punctuation else code)


# Some of ASCII's punctuation has another category in Unicode: $+<=>^`|~.
_PUNCTUATION_REMOVAL = _PunctuationRemoval(
  (ord(character), None) for character in string.punctuation
)


def normalise(answer: str) -> str:
  """Lower case, without punctuation and English articles, words separated by single spaces."""
  text = unicodedata.normalize("NFKC", answer).lower().translate(_PUNCTUATION_REMOVAL)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
  """Whether the prediction equals one of the accepted answers once both are normalised."""
  predicted = normalise(prediction)
  return any(predicted == normalise(answer) for answer in answers)


def contains(text: str, answers: Sequence[str]) -> bool:
  """Whether the text contains one of the answers as whole words; all are already normalised.

  No text contains an answer that is empty after normalisation. Where an answer begins or ends in a
  script without spaces, its neighbour there may be any character.
  """
  return any(answer and _whole(answer) in f" {text} " for answer in answers)


def _whole(answer: str) -> str:
  """The answer with a space at each end at which its script has one."""
  before, after = ("" if is_spaceless(answer[end]) else " " for end in (0, -1))
  return f"{before}{answer}{after}"


def f1(prediction: str, answers: Sequence[str]) -> float:
  """The best word overlap with an accepted answer, harmonic mean of precision and recall, 0 to 1.

  Words are those of the normalised texts, counted with multiplicity. Where either is empty, the
  score is 1 if both are and 0 otherwise. Without any answer it is 0.
  """
  predicted = normalise(prediction).split()
  return max((_overlap(predicted, normalise(answer).split()) for answer in answers), default=0.0)


def _overlap(predicted: list[str], accepted: list[str]) -> float:
  if not predicted or not accepted:
    return float(predicted == accepted)
  shared = sum((Counter(predicted) & Counter(accepted)).values())
  if not shared:
    return 0.0
  precision, recall = shared / len(predicted), shared / len(accepted)
  return 2 * precision * recall / (precision + recall)
