"""The scripts that are written without spaces between their words."""

import regex

# The inside of a class of characters of the package `regex`, Japanese iteration marks included.
SPACELESS = (
  r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー々〆"
)
_SPACELESS = regex.compile(f"[{SPACELESS}]")


def is_spaceless(character: str) -> bool:
  """Whether a character is of a script without spaces between its words."""
  return not character.isascii() and _SPACELESS.match(character) is not None
