"""Words of a text, cut as its scripts need it.

Where words stand between spaces they are what bm25s takes for words: two or more letters, digits
and underscores, here with the marks that belong to them (the vowel signs of Hindi are marks). A
script without spaces between its words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) is
cut into all its pairs of neighbouring characters, as Lucene's CJK analyser does, and a word of
Chinese characters also into these, each of which has a meaning of its own.
"""

import re
import unicodedata

import regex

from frozen_jax.text.scripts import SPACELESS

VERSION = 2  # of the rules, for indexes: raised where `words` gives others

_CHARACTER = rf"[{SPACELESS}]\p{{M}}*"
_LETTER = rf"[\w\p{{M}}--[{SPACELESS}]]"
_RUN = regex.compile(rf"(?V1)(?P<spaceless>(?:{_CHARACTER})+)|{_LETTER}{{2,}}")
_CHARACTERS = regex.compile(rf"(?V1){_CHARACTER}")
_HAN = regex.compile(r"\p{Han}")
_ASCII_WORD = re.compile(r"\w{2,}")
_PIECE = regex.compile(rf"(?V1)(?:{_CHARACTER}){{1,2}}\p{{P}}*|[^\s{SPACELESS}]+")


def words(text: str) -> list[str]:
  """The words of a text for a search, in Unicode's form NFKC (full-width letters as others)."""
  if text.isascii():
    return _ASCII_WORD.findall(text)
  text = unicodedata.normalize("NFKC", text)
  found: list[str] = []
  for match in _RUN.finditer(text):
    if match["spaceless"]:
      found += _pairs(_CHARACTERS.findall(match.group()))
    else:
      found.append(match.group())
  return found


def word_spans(text: str) -> list[tuple[int, int]]:
  """(start, end) of each word, to count words and to cut between them.

  Words are separated by white space; of a script without spaces two characters count as a word,
  which is about what a word of Japanese or Chinese has.
  """
  return [match.span() for match in _PIECE.finditer(text)]


def _pairs(characters: list[str]) -> list[str]:
  """The pairs of neighbours; a character alone where it is one of Chinese, or has no neighbour."""
  if len(characters) == 1:
    return characters
  pairs = [one + other for one, other in zip(characters, characters[1:], strict=False)]
  return pairs + [one for one in characters if _HAN.match(one)]
