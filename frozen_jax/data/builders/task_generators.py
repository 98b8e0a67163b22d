"""The facts that the tasks of `many_tasks` ask for: rows of fields, for the templates.

Tasks about countries have a row for each country of a split of `world_facts`. Rows of all other
tasks are random, each task with its own seed, without duplicates: no two rows have equal keys
(3 + 4 and 4 + 3 are one sum).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from frozen_jax.core.json_row import Row
from frozen_jax.data.builders.countries import SPLITS, Country, countries, mentions
from frozen_jax.data.builders.words import OPPOSITES, WORDS, WORDS_BY_KIND, words_of

Item = TypeVar("Item")

MONTHS = words_of(
  "January February March April May June July August September October November December"
)
WEEKDAYS = words_of("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
_ORDINALS = ("first", "second", "third", "fourth")


class Draw:
  """Random numbers that are the same in every version of Python: they use `random()` only."""

  def __init__(self, seed: str):
    self._random = random.Random(seed).random

  def number(self, low: int, high: int) -> int:
    """One of low, ..., high."""
    return low + int(self._random() * (high - low + 1))

  def one(self, items: Sequence[Item]) -> Item:
    return items[self.number(0, len(items) - 1)]

  def some(self, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different ones of the items, in random order."""
    return sorted(items, key=lambda _: self._random())[:count]


def _answers(field: str) -> Callable[[Country], Row | None]:
  def row(country: Country) -> Row | None:
    answers = getattr(country, field)
    return {"country": country.spoken, "answers": list(answers)} if answers else None

  return row


def _country_of_capital(country: Country) -> Row | None:
  capital = country.capitals[0]
  if mentions(capital, frozenset(country.names)):
    return None  # the question would contain the answer
  return {"capital": capital, "answers": list(country.names)}


def _continent(country: Country) -> Row | None:
  names = [name for name in CONTINENTS if name in country.continents]
  if len(names) != 1:
    return None
  return {"country": country.spoken, "continent": names[0], "continents": list(CONTINENTS)}


def _is_capital(country: Country) -> Row | None:
  draw = Draw(f"many_tasks/is_capital/{country.code}")
  others = [one for one in countries() if one.split == country.split and one != country]
  truth = draw.number(0, 1)
  city = (country if truth else draw.one(others)).capitals[0]
  return {"country": country.spoken, "city": city, "truth": truth}


OF_COUNTRIES: dict[str, Callable[[Country], Row | None]] = {
  "capital": _answers("capitals"),
  "country_of_capital": _country_of_capital,
  "currency": _answers("currencies"),
  "nationality": _answers("demonyms"),
  "language": _answers("languages"),
  "region": _answers("subregions"),
  "is_capital": _is_capital,
  "continent": _continent,
}


def country_rows(task: str, splits: Sequence[str]) -> Iterator[tuple[str, Row]]:
  """(ISO code, fields) of a task about each country of some of world_facts' splits.

  No row names a country of another split: such answers are left out, and rows without others.
  """
  other = [split for split in SPLITS if split not in splits]
  other_names = frozenset(n for one in countries() if one.split in other for n in one.names)
  for country in countries():
    if country.split not in splits or (row := OF_COUNTRIES[task](country)) is None:
      continue
    if "answers" in row:
      row["answers"] = [answer for answer in row["answers"] if not mentions(answer, other_names)]
    texts = [value for value in row.values() if isinstance(value, str)]
    if row.get("answers", True) and not mentions(" | ".join(texts), other_names):
      yield country.code, row


def _sum(draw: Draw) -> tuple[Any, Row]:
  a, b = draw.number(1, 60), draw.number(1, 60)
  return frozenset((a, b)), {"a": a, "b": b}


def _difference(draw: Draw) -> tuple[Any, Row]:
  a, b = draw.number(10, 99), draw.number(1, 60)
  a, b = max(a, b), min(a, b)
  return (a, b), {"a": a, "b": b}


def _product(draw: Draw) -> tuple[Any, Row]:
  a, b = draw.number(2, 12), draw.number(2, 20)
  return frozenset((a, b)), {"a": a, "b": b}


def _pair(draw: Draw) -> tuple[Any, Row]:
  a, b = draw.some(range(1, 500), 2)
  return frozenset((a, b)), {"a": a, "b": b}


def _parity(draw: Draw) -> tuple[Any, Row]:
  n = draw.number(10, 999)
  return n, {"n": n}


def _weekday(draw: Draw) -> tuple[Any, Row]:
  first = draw.number(1, 18)
  second, known = draw.number(first + 1, first + 9), draw.number(0, 6)
  row = {
    "month": draw.one(MONTHS),
    "first": first,
    "second": second,
    "known": WEEKDAYS[known],
    "weekday": WEEKDAYS[(known + second - first) % 7],
    "weekdays": list(WEEKDAYS),
  }
  return (row["month"], first, second, known), row


def _days(draw: Draw) -> tuple[Any, Row]:
  first, second = sorted(draw.some(range(1, 29), 2))
  month = draw.one(MONTHS)
  return (month, first, second), {"month": month, "first": first, "second": second}


def _months(draw: Draw) -> tuple[Any, Row]:
  i, j = draw.some(range(12), 2)
  return (i, j), {"i": i, "j": j, "a": MONTHS[i], "b": MONTHS[j]}


def _later_month(draw: Draw) -> tuple[Any, Row]:
  month, n = draw.number(0, 11), draw.number(2, 11)
  return (month, n), {"month": MONTHS[month], "n": n, "later": MONTHS[(month + n) % 12]}


def _word(draw: Draw) -> tuple[Any, Row]:
  word = draw.one(WORDS)
  return word, {"word": word}


def _first_letter(draw: Draw) -> tuple[Any, Row]:
  # "a" is an article to the scores, which drop articles
  word = draw.one([word for word in WORDS if word[0] != "a"])
  return word, {"word": word}


def _last_letter(draw: Draw) -> tuple[Any, Row]:
  word = draw.one([word for word in WORDS if word[-1] != "a"])
  return word, {"word": word}


def _letter_of_word(draw: Draw) -> tuple[Any, Row]:
  word = draw.one(WORDS)
  letter = draw.one(word if draw.number(0, 3) else "aeiorst")
  return (word, letter), {"word": word, "letter": letter}


def _words(draw: Draw) -> tuple[Any, Row]:
  words, n = draw.some(WORDS, 4), draw.number(0, 3)
  return (*words, n), {"words": words, "n": n, "ordinal": _ORDINALS[n]}


def _unsorted_words(draw: Draw) -> tuple[Any, Row]:
  words = draw.some(WORDS, draw.number(3, 4))
  return frozenset(words), {"words": words}


def _numbers(draw: Draw) -> tuple[Any, Row]:
  numbers = draw.some(range(1, 200), draw.number(3, 5))
  return frozenset(numbers), {"numbers": numbers}


def _odd_one(draw: Draw) -> tuple[Any, Row]:
  usual, other = draw.some(sorted(WORDS_BY_KIND), 2)
  odd = draw.one(WORDS_BY_KIND[other])
  words = draw.some([*draw.some(WORDS_BY_KIND[usual], 3), odd], 4)
  return frozenset(words), {"words": words, "odd": odd}


def _opposite(draw: Draw) -> tuple[Any, Row]:
  pair, *others = draw.some(OPPOSITES, 4)
  word, opposite = draw.some(pair, 2)
  words = draw.some([opposite, *(draw.one(other) for other in others)], 4)
  return word, {"word": word, "opposite": opposite, "words": words}


DRAWN: dict[str, Callable[[Draw], tuple[Any, Row]]] = {
  "addition": _sum,
  "subtraction": _difference,
  "multiplication": _product,
  "comparison": _pair,
  "parity": _parity,
  "weekday": _weekday,
  "days_between": _days,
  "month_order": _months,
  "reverse": _word,
  "spell": _word,
  "first_letter": _first_letter,
  "count_letters": _letter_of_word,
  "nth_word": _words,
  "sort_numbers": _numbers,
  "sort_words": _unsorted_words,
  "largest_number": _numbers,
  "odd_one_out": _odd_one,
  "opposite": _opposite,
  "last_letter": _last_letter,
  "next_month": _later_month,
}


def drawn_rows(task: str, count: int) -> list[Row]:
  """The first `count` rows of a random task, with different keys."""
  draw, rows = Draw(f"many_tasks/{task}"), dict[Any, Row]()
  while len(rows) < count:
    key, row = DRAWN[task](draw)
    rows.setdefault(key, row)
  return list(rows.values())
