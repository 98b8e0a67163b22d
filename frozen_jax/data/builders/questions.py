"""The questions about each country: relations, phrasings and accepted answers.

One-hop relations ask for a fact of a named country, or for the country of a fact; two-hop relations
identify the country by its capital or its people. Every relation has phrasings that all splits
share; some have one that occurs in training only (for variety) and one that occurs in the test only
(to test whether the fact was learnt, not the sentence).
"""

import dataclasses
from collections.abc import Iterator

from frozen_jax.data.builders.countries import SPLITS, Country, countries, mentions
from frozen_jax.data.examples import Example


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of question: its phrasings, and the field of Country that holds the answers.

  Phrasings are str.format texts over `country`, `capital` and `demonym`. kind: `1_hop`, or
  `2_hops` where the country has to be found first.
  """

  name: str
  answers: str
  shared: tuple[str, ...]
  train: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  kind: str = "1_hop"


_OF_CAPITAL = "the country whose capital is {capital}"

RELATIONS = (
  Relation(
    "capital",
    "capitals",
    shared=("What is the capital of {country}?", "Which city is the capital of {country}?"),
    test=("Name the capital city of {country}.",),
  ),
  Relation(
    "country_of_capital",
    "names",
    shared=(
      "Which country has {capital} as its capital?",
      "{capital} is the capital of which country?",
    ),
    test=("Of which country is {capital} the capital?",),
  ),
  Relation(
    "continent",
    "continents",
    shared=("On which continent is {country}?", "Which continent is {country} part of?"),
  ),
  Relation(
    "subregion",
    "subregions",
    shared=("In which part of the world is {country}?",),
    train=("Which region of the world does {country} belong to?",),
  ),
  Relation(
    "demonym",
    "demonyms",
    shared=("What do you call a person from {country}?",),
    train=("What are the people of {country} called?",),
    test=("Someone who comes from {country} is called what?",),
  ),
  Relation(
    "country_of_demonym",
    "names",
    shared=("From which country does someone who is {demonym} come?",),
    train=("Which country are {demonym} people from?",),
  ),
  Relation(
    "currency",
    "currencies",
    shared=("What is the currency of {country}?", "Which currency is used in {country}?"),
    test=("What money do people pay with in {country}?",),
  ),
  Relation(
    "language",
    "languages",
    shared=(
      "What is an official language of {country}?",
      "Which language is spoken in {country}?",
    ),
  ),
  Relation(
    "capital_to_continent",
    "continents",
    shared=(f"On which continent is {_OF_CAPITAL}?",),
    train=("On which continent is the city of {capital}?",),
    kind="2_hops",
  ),
  Relation(
    "capital_to_subregion",
    "subregions",
    shared=(f"In which part of the world is {_OF_CAPITAL}?",),
    kind="2_hops",
  ),
  Relation(
    "capital_to_currency",
    "currencies",
    shared=(f"What is the currency of {_OF_CAPITAL}?",),
    train=(f"Which currency is used in {_OF_CAPITAL}?",),
    test=("What money do people pay with in {capital}?",),
    kind="2_hops",
  ),
  Relation(
    "capital_to_language",
    "languages",
    shared=(f"What is an official language of {_OF_CAPITAL}?",),
    train=("Which language is spoken in {capital}?",),
    kind="2_hops",
  ),
  Relation(
    "capital_to_demonym",
    "demonyms",
    shared=(f"What do you call a person from {_OF_CAPITAL}?",),
    kind="2_hops",
  ),
  Relation(
    "demonym_to_capital",
    "capitals",
    shared=("What is the capital of the country whose people are called {demonym}?",),
    kind="2_hops",
  ),
)
_FROM_CAPITAL = tuple(one.name for one in RELATIONS if one.name.startswith("capital_to_"))
_KINDS = {one.name: one.kind for one in RELATIONS}


def questions(split: str) -> Iterator[Example]:
  """The examples {"id", "question", "answers"} of train, validation or test, by country.

  An id is "ISO code/relation/number of the phrasing". Questions are left out if the country lacks
  the answer, if they contain the answer, or if their first hop fits two countries. Answers that
  name a country of another split are left out too, with questions that then have no answer.
  """
  other_names = frozenset(
    name for country in countries() if country.split != split for name in country.names
  )
  for country in countries():
    if country.split != split:
      continue
    for relation in RELATIONS:
      yield from _questions_of(country, relation, split, other_names)


def kind_of(example: Example) -> str:
  """The kind (`Relation.kind`) of a question, by its id."""
  return _KINDS[example["id"].split("/")[1]]


def first_hop_of(example: Example) -> list[str]:
  """The country that a question of two hops leads to first; the answers of one hop."""
  if kind_of(example) == "1_hop":
    return list(example["answers"])
  code = example["id"].split("/")[0]
  return list(next(one.names for one in countries() if one.code == code))


def _questions_of(
  country: Country, relation: Relation, split: str, other_names: frozenset[str]
) -> Iterator[Example]:
  answers = _answers(country, relation)
  answers = [answer for answer in answers if not mentions(answer, other_names)]
  if not answers or not _is_well_posed(country, relation):
    return
  values = {
    "country": country.spoken,
    "capital": country.capitals[0],
    "demonym": country.demonyms[0] if country.demonyms else "",
  }
  extra = {SPLITS[0]: relation.train, SPLITS[2]: relation.test}.get(split, ())
  phrasings = relation.shared + relation.train + relation.test
  for phrasing in relation.shared + extra:
    question = phrasing.format(**values)
    question = question[0].upper() + question[1:]
    if not mentions(question, other_names):
      yield {
        "id": f"{country.code}/{relation.name}/{phrasings.index(phrasing)}",
        "question": question,
        "answers": answers,
      }


def _answers(country: Country, relation: Relation) -> list[str]:
  if relation.name == "country_of_demonym":  # every country whose people are called so
    same = [one for one in countries() if one.demonyms[:1] == country.demonyms[:1]]
    return list(dict.fromkeys(name for one in same for name in one.names))
  return list(getattr(country, relation.answers))


def _is_well_posed(country: Country, relation: Relation) -> bool:
  """Whether the question identifies one country, and does not contain the answer."""
  if relation.name in ("country_of_capital", *_FROM_CAPITAL):
    return country.capitals[0] not in country.names
  if relation.name not in ("country_of_demonym", "demonym_to_capital"):
    return True
  same = [one.code for one in countries() if one.demonyms[:1] == country.demonyms[:1]]
  if not country.demonyms or country.demonyms[0] in country.names:
    return False
  if relation.name == "demonym_to_capital":
    return same == [country.code]
  return same[0] == country.code  # asked once for all of them
