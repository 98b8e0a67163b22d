"""Plain English: prose only, and nothing of it tells about a held-out country."""

import re
import unicodedata

import pytest

from frozen_jax.data.builders import plain_english
from frozen_jax.data.builders.countries import countries, held_out_names
from frozen_jax.data.sources import open_source


@pytest.fixture(scope="module")
def texts(cache):
  return {split: list(open_source(f"plain_english/{split}")) for split in plain_english.SPLITS}


def test_sizes_and_disjoint_documents(texts):
  sizes = {split: sum(len(row["text"]) for row in rows) for split, rows in texts.items()}
  assert sizes["train"] > 300_000
  assert sizes["validation"] > 15_000
  assert not {row["id"] for row in texts["train"]} & {row["id"] for row in texts["validation"]}
  paragraphs = [p for rows in texts.values() for row in rows for p in row["text"].split("\n\n")]
  assert len(paragraphs) == len(set(paragraphs))


def test_no_held_out_country_occurs(texts):
  """Looked for word by word, not with the builder's own function."""

  def plain(text):
    bare = unicodedata.normalize("NFKD", text)
    letters = "".join(c for c in bare if not unicodedata.combining(c)).casefold()
    return " " + " ".join(re.findall(r"[^\W_]+", letters)) + " "

  everything = plain(" ".join(row["text"] for rows in texts.values() for row in rows))
  names = {plain(name) for name in held_out_names()}
  names |= {plain(one.names[0]) for one in countries() if one.split != "train"}
  assert len(names) > 100
  assert [name for name in names if name in everything] == []


def test_a_paragraph_that_names_one_is_dropped(monkeypatch):
  kept = "The interpreter reads the source text of a module and then runs it line by line."
  country = next(one for one in countries() if one.split == "test")
  named = (
    f"The interpreter also runs in {country.names[0].upper()}, where people read its text too."
  )
  fact = f"The interpreter was written in {country.capitals[0]} by people who like to read source."
  document = "\n\n".join((kept * 3, named, fact))
  monkeypatch.setattr(plain_english, "_raw_documents", lambda: iter([("topics/x", document)]))
  assert list(plain_english.documents()) == [("topics/x", kept * 3)]


@pytest.mark.parametrize(
  "paragraph, prose",
  [
    ("A class can be used where a function is expected, and it is then called.", True),
    ("Too short to be kept.", False),
    ("no capital begins this sentence, which has more than twelve words in all of it.", False),
    ("This sentence has well over a dozen words but it does not come to an end", False),
    ("An assignment such as x = 1 binds a name to a value, and this is not prose.", False),
    ("Numbers 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 are many.", False),
  ],
)
def test_rule_of_prose(paragraph, prose):
  assert plain_english.is_prose(paragraph) == prose


def test_markup_and_indented_blocks():
  text = (
    "This is *emphasis* and ``code`` in a line that the\nreader can follow without any marks.\n\n"
    "    x ::= y\n      z\n\nThen the text goes on for a while, and here it is that it ends."
  )
  assert list(plain_english.paragraphs(text)) == [
    "This is emphasis and code in a line that the reader can follow without any marks.",
    "Then the text goes on for a while, and here it is that it ends.",
  ]
