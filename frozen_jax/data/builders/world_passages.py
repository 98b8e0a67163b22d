"""A small corpus for `world_facts`: two passages on each country, and which one answers a question.

They contain the facts that the questions ask for (`countries.py`), so that a reader can be tried
without a network. One passage is about a country's places, the other about its people; both name
its capital, since some questions identify the country by its capital.
"""

from collections.abc import Iterator

from frozen_jax.data.builders.countries import Country, countries
from frozen_jax.data.builders.questions import RELATIONS

PLACES, PEOPLE = "places", "people"
_PASSAGE_OF_ANSWER = {
  "names": PLACES,
  "capitals": PLACES,
  "continents": PLACES,
  "subregions": PLACES,
}
_PASSAGE_OF_RELATION = {"country_of_demonym": PEOPLE, "demonym_to_capital": PEOPLE}


def passages() -> Iterator[tuple[str, str, str]]:
  """(id, title, text) of each passage; an id is "ISO code/places" or "ISO code/people"."""
  for country in countries():
    yield f"{country.code}/{PLACES}", country.names[0], _places(country)
    yield f"{country.code}/{PEOPLE}", country.names[0], _people(country)


def positive_ids(question: str) -> tuple[str, ...]:
  """The passages that answer the question of this id ("ISO code/relation/number")."""
  code, relation, _ = question.split("/")
  answers = next(one.answers for one in RELATIONS if one.name == relation)
  kind = _PASSAGE_OF_RELATION.get(relation) or _PASSAGE_OF_ANSWER.get(answers, PEOPLE)
  return (f"{code}/{kind}",)


def _places(country: Country) -> str:
  text = f"{_capitalised(country.spoken)} is a country"
  if country.subregions:
    text += f" in {country.subregions[0]}"
  if country.continents:
    text += f", on the continent of {country.continents[0]}"
  return f"{text}. Its capital is the city of {country.capitals[0]}, the seat of its government."


def _people(country: Country) -> str:
  sentences = [f"{_capitalised(country.spoken)} is governed from {country.capitals[0]}."]
  if country.demonyms:
    sentences.append(f"Someone who comes from {country.spoken} is called {country.demonyms[0]}.")
  if country.languages:
    sentences.append(f"The language most used there is {country.languages[0]}.")
  if country.currencies:
    sentences.append(f"People pay with the {country.currencies[0]}.")
  return " ".join(sentences)


def _capitalised(name: str) -> str:
  return name[0].upper() + name[1:]
