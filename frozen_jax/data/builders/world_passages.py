"""A small corpus for `world_facts`: two passages on each country, and which one answers a question.

Made of the facts that the questions are made of (`countries.py`), so that a reader can be tried
without a network. One passage tells of a country's places, the other of its people; both name its
capital, by which some questions name the country.
"""

from collections.abc import Iterator

from frozen_jax.data.builders.countries import Country, countries
from frozen_jax.data.builders.questions import RELATIONS

PLACES, PEOPLE = "places", "people"
_OF = {"names": PLACES, "capitals": PLACES, "continents": PLACES, "subregions": PLACES}
_ANSWERED_BY = {"country_of_demonym": PEOPLE, "demonym_to_capital": PEOPLE}


def passages() -> Iterator[tuple[str, str, str]]:
  """(id, title, text) of each passage; an id is "ISO code/places" or "ISO code/people"."""
  for country in countries():
    yield f"{country.code}/{PLACES}", country.names[0], _places(country)
    yield f"{country.code}/{PEOPLE}", country.names[0], _people(country)


def positive_ids(question: str) -> tuple[str, ...]:
  """The passages that answer the question of this id ("ISO code/relation/number")."""
  code, relation, _ = question.split("/")
  answers = next(one.answers for one in RELATIONS if one.name == relation)
  return (f"{code}/{_ANSWERED_BY.get(relation) or _OF.get(answers, PEOPLE)}",)


def _places(country: Country) -> str:
  told = f"{_first(country.spoken)} is a country"
  if country.subregions:
    told += f" in {country.subregions[0]}"
  if country.continents:
    told += f", on the continent of {country.continents[0]}"
  return f"{told}. Its capital is the city of {country.capitals[0]}, the seat of its government."


def _people(country: Country) -> str:
  told = [f"{_first(country.spoken)} is governed from {country.capitals[0]}."]
  if country.demonyms:
    told.append(f"Someone who comes from {country.spoken} is called {country.demonyms[0]}.")
  if country.languages:
    told.append(f"The language most used there is {country.languages[0]}.")
  if country.currencies:
    told.append(f"People pay with the {country.currencies[0]}.")
  return " ".join(told)


def _first(name: str) -> str:
  return name[0].upper() + name[1:]
