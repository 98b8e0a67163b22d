"""The countries of the package countryinfo, cleaned, and their split.

The package's entries are changed as follows: entries that are no country of today are left out,
some names and facts are updated or completed (by the tables below), and spellings without accents
are added to those with accents.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from typing import Any

import countryinfo

from frozen_jax.data.builders.names import currency_names, language_names
from frozen_jax.data.builtin import BUILTIN_DATASETS

SPLITS = BUILTIN_DATASETS["world_facts"].splits


def _codes(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Territories, parts of another entry, historical states, and places whose capital is disputed.
_NOT_ASKED = _codes("""
  AQ AS AI AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF
  MO MP MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK UM VG VI WF YT
""")
_NOT_ASKED_NAMES = frozenset(
  ("Antilles néerlandaises", "Burma", "Holy See (Vatican City State)", "Scotland", "Wales")
)

# ISO code -> the name to ask by; the package's own name stays accepted.
_RENAMED = {
  "BS": "Bahamas",
  "CV": "Cape Verde",
  "GM": "Gambia",
  "MK": "North Macedonia",
  "SZ": "Eswatini",
  "VA": "Vatican City",
}
_WITH_ARTICLE = _codes("""
  AE BS CD CF CG CZ DO FM GB GM KM MH MV NL PH SB SC US
""")  # "the Netherlands"
_MORE_NAMES = {
  "CD": ("Congo", "Zaire"),
  "CZ": ("Czechia",),
  "GB": ("Britain",),
  "MM": ("Burma",),
  "TL": ("Timor-Leste",),
  "US": ("U.S.", "U.S.A."),
}
# Listed by the package as spellings of a country's name, which they are not.
_NO_NAMES = frozenset(
  ("Island", "Mann", "Mexicanos", "Montenegrin", "Portuguesa", "Prathet", "Thai", "Togolese")
  + ("the Abode of Peace", "Naoero", "Viti")
)

# ISO code -> answers that go before (`first`) or after (`also`) those of the package.
_CAPITAL_FIRST = {
  "BI": ("Gitega",),
  "KZ": ("Astana",),
  "SM": ("San Marino",),
  "SZ": ("Mbabane",),
  "US": ("Washington, D.C.",),
}
_CAPITAL_ALSO = {
  "AG": ("St. John's",),
  "BJ": ("Cotonou",),
  "BO": ("La Paz",),
  "CI": ("Abidjan",),
  "GD": ("Saint George's",),
  "GT": ("Guatemala",),
  "KI": ("Tarawa",),
  "KW": ("Kuwait",),
  "LK": ("Sri Jayawardenepura Kotte", "Kotte"),
  "LU": ("Luxembourg City",),
  "MC": ("Monaco City",),
  "MM": ("Nay Pyi Taw",),
  "PA": ("Panama",),
  "UA": ("Kiev",),
  "US": ("Washington", "Washington DC"),
  "ZA": ("Cape Town", "Bloemfontein"),
}
_CONTINENT_ALSO = {
  "AM": ("Europe",),
  "AZ": ("Europe",),
  "CY": ("Europe",),
  "EG": ("Asia",),
  "GE": ("Europe",),
  "ID": ("Oceania",),
  "KZ": ("Europe",),
  "RU": ("Asia",),
  "TR": ("Europe",),
}
_DEMONYM_ALSO = {
  "AR": ("Argentine", "Argentinian"),
  "BW": ("Botswanan", "Batswana"),
  "CV": ("Cape Verdean",),
  "DJ": ("Djiboutian",),
  "DK": ("Dane",),
  "EC": ("Ecuadorian",),
  "ES": ("Spaniard",),
  "FI": ("Finn",),
  "GB": ("Briton",),
  "HR": ("Croat",),
  "IS": ("Icelandic",),
  "KG": ("Kyrgyz", "Kyrgyzstani"),
  "KM": ("Comorian",),
  "KZ": ("Kazakh",),
  "LA": ("Lao",),
  "LS": ("Basotho",),
  "LU": ("Luxembourgish",),
  "MV": ("Maldivian",),
  "NP": ("Nepali",),
  "NZ": ("Kiwi",),
  "PL": ("Pole",),
  "RS": ("Serb",),
  "SE": ("Swede",),
  "SI": ("Slovenian",),
  "SK": ("Slovakian",),
  "SR": ("Surinamese",),
  "TJ": ("Tajik", "Tajikistani"),
  "TR": ("Turk",),
  "UZ": ("Uzbek",),
}
_CURRENCIES = {"BG": ("BGN", "EUR"), "HR": ("EUR",), "SV": ("USD",), "ZW": ("ZWL", "USD")}
_LANGUAGES = {
  "AF": ("ps", "fa", "uz", "tk"),
  "KI": ("en", "gil"),
  "ME": ("cnr", "sr"),
  "MU": ("en", "fr"),
  "MY": ("ms",),
  "PH": ("fil", "en"),
  "PK": ("ur", "en"),
  "PW": ("en", "pau"),
  "RS": ("sr",),
  "TL": ("pt", "tet"),
  "TV": ("en", "tvl"),
}
_SUBREGIONS = {  # the United Nations' name -> common names
  "Australia and New Zealand": ("Australasia",),
  "Caribbean": ("the Caribbean", "West Indies"),
  "Eastern Africa": ("East Africa",),
  "Eastern Asia": ("East Asia",),
  "Middle Africa": ("Central Africa",),
  "Northern Africa": ("North Africa",),
  "Northern America": ("North America",),
  "South-eastern Asia": ("Southeast Asia", "South East Asia"),
  "Southern Asia": ("South Asia",),
  "Western Africa": ("West Africa",),
  "Western Asia": ("West Asia", "Middle East"),
}


@dataclasses.dataclass(frozen=True)
class Country:
  """One country; of each tuple the first entry is the usual answer, all are accepted.

  `group` is shared by countries that must not be separated by a split: one's name contains
  the other's as words (Guinea, Papua New Guinea), or they share a capital's name or a demonym.
  """

  code: str
  names: tuple[str, ...]
  capitals: tuple[str, ...]
  continents: tuple[str, ...]
  subregions: tuple[str, ...]
  demonyms: tuple[str, ...]
  currencies: tuple[str, ...]
  languages: tuple[str, ...]
  group: str = ""

  @property
  def spoken(self) -> str:
    """The name within a sentence: "Peru", "the Netherlands"."""
    return f"the {self.names[0]}" if self.code in _WITH_ARTICLE else self.names[0]

  @property
  def split(self) -> str:
    """train, validation or test (about 70, 15 and 15%), by a hash of the group."""
    percentile = int(hashlib.sha256(f"world_facts/{self.group}".encode()).hexdigest()[:8], 16) % 100
    return SPLITS[0] if percentile < 70 else SPLITS[1] if percentile < 85 else SPLITS[2]


@functools.cache
def countries() -> tuple[Country, ...]:
  """Every country that questions are asked about, by ISO code."""
  rows = (dict(entry.info()) for entry in countryinfo.all_countries())
  cleaned = [_clean(row) for row in rows if _is_asked(row)]
  return _with_groups(sorted(cleaned, key=lambda country: country.code))


def held_out_names() -> frozenset[str]:
  """Every spelling of every country of validation and test."""
  return frozenset(
    name for country in countries() if country.split != SPLITS[0] for name in country.names
  )


def held_out_facts() -> frozenset[str]:
  """Capitals and demonyms of the countries of validation and test."""
  return frozenset(
    fact
    for country in countries()
    if country.split != SPLITS[0]
    for fact in country.capitals + country.demonyms
  )


@functools.cache
def _pattern(names: frozenset[str], flags: int) -> re.Pattern:
  both = names | {without_accents(name) for name in names}
  longest_first = sorted(both, key=lambda name: (-len(name), name))
  return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", flags)


def mentions(text: str, names: frozenset[str], any_case: bool = True) -> bool:
  """Whether one of `names` occurs in `text` as whole words, with or without its accents."""
  flags = re.IGNORECASE if any_case else re.NOFLAG
  return bool(names) and bool(_pattern(names, flags).search(" ".join(text.split())))


def without_accents(text: str) -> str:
  """Letters without their marks: "Brasília" -> "Brasilia"."""
  decomposed = unicodedata.normalize("NFKD", text.replace("ł", "l").replace("đ", "d"))
  return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _is_asked(row: dict[str, Any]) -> bool:
  has_capital = any(name.strip() for name in _as_list(row.get("capital")))
  return (
    has_capital
    and row["ISO"]["alpha2"] not in _NOT_ASKED
    and row["name"] not in _NOT_ASKED_NAMES
    and bool(row.get("region"))
  )


def _clean(row: dict[str, Any]) -> Country:
  code = row["ISO"]["alpha2"]
  demonyms = [part for text in _as_list(row.get("demonym")) for part in re.split("[,/]", text)]
  return Country(
    code=code,
    names=_names(code, row),
    capitals=_spellings(
      _CAPITAL_FIRST.get(code, ()), _as_list(row["capital"]), _CAPITAL_ALSO.get(code, ())
    ),
    continents=_spellings(_continents(row), _CONTINENT_ALSO.get(code, ())),
    subregions=_subregions(row),
    demonyms=() if code == "VA" else _spellings(demonyms, _DEMONYM_ALSO.get(code, ())),
    currencies=_spellings(
      *map(currency_names, _CURRENCIES.get(code) or _as_list(row.get("currencies")))
    ),
    languages=_spellings(
      *map(language_names, _LANGUAGES.get(code) or _as_list(row.get("languages")))
    ),
  )


def _names(code: str, row: dict[str, Any]) -> tuple[str, ...]:
  iso = {value for value in row["ISO"].values() if value not in ("USA", "DRC")}
  others = [name.strip() for name in row.get("altSpellings") or ()]
  inverted = [" ".join(reversed(name.split(", ", 1))) for name in others if name.count(", ") == 1]
  listed = [name.removeprefix("The ") for name in (row["name"], *others, *inverted)]
  names = _spellings([_RENAMED.get(code, row["name"])], listed, _MORE_NAMES.get(code, ()))
  return tuple(name for name in names if name not in iso and name not in _NO_NAMES)


def _continents(row: dict[str, Any]) -> tuple[str, ...]:
  if row["region"] != "Americas":
    return (row["region"],)
  southern = row.get("intermediateregion") == "South America"
  return ("South America" if southern else "North America", "Americas", "America")


def _subregions(row: dict[str, Any]) -> tuple[str, ...]:
  listed = [row.get("intermediateregion") or "", row.get("subregion") or ""]
  listed = [name.strip() for name in listed if name.strip()]
  usual = [name for listing in listed[:1] for name in _SUBREGIONS.get(listing, ())]
  return _spellings(usual, listed, *(_SUBREGIONS.get(name, ()) for name in listed))


def _spellings(*groups: Any) -> tuple[str, ...]:
  """The groups' strings in order, each once, then those of them that lose accents, without."""
  listed = [" ".join(text.split()) for group in groups for text in group if text and text.strip()]
  plain = [without_accents(text) for text in listed]
  return tuple(dict.fromkeys(listed + [text for text in plain if text]))


def _as_list(value: Any) -> list[str]:
  if value is None:
    return []
  return [value] if isinstance(value, str) else list(value)


def _with_groups(ungrouped: list[Country]) -> tuple[Country, ...]:
  """Sets the group of each country: the smallest ISO code among those it is linked with."""
  leader = {country.code: country.code for country in ungrouped}

  def find(code: str) -> str:
    while leader[code] != code:
      code = leader[code]
    return code

  for index, one in enumerate(ungrouped):
    for other in ungrouped[:index]:
      if _linked(one, other):
        low, high = sorted((find(one.code), find(other.code)))
        leader[high] = low
  return tuple(dataclasses.replace(country, group=find(country.code)) for country in ungrouped)


def _linked(one: Country, other: Country) -> bool:
  facts = set(one.capitals + one.demonyms) & set(other.capitals + other.demonyms)
  return bool(facts) or _within(one.names, other.names) or _within(other.names, one.names)


def _within(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
  return mentions(" | ".join(others), frozenset(names))
