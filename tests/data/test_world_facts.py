"""World facts: which questions there are, and that the splits share no country by any name."""

import subprocess
import sys
from collections import Counter

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.builders.countries import SPLITS, countries, mentions
from frozen_jax.data.builders.names import currency_names, language_names
from frozen_jax.data.builders.questions import RELATIONS, first_hop_of, kind_of, questions
from frozen_jax.data.builders.world_facts import WorldFacts
from frozen_jax.data.sources import open_source
from tests.processes import HANGS_AFTER


@pytest.fixture(scope="module")
def asked():
  return {split: list(questions(split)) for split in SPLITS}


def names_of(split):
  return frozenset(name for one in countries() if one.split == split for name in one.names)


def test_sizes(asked):
  assert len(asked["train"]) >= 2500
  assert len(asked["validation"]) >= 400
  assert len(asked["test"]) >= 600
  shares = Counter(country.split for country in countries())
  assert 0.63 < shares["train"] / shares.total() < 0.77


def test_ids_are_unique_and_questions_do_not_repeat_between_splits(asked):
  everything = [example for split in SPLITS for example in asked[split]]
  assert len({example["id"] for example in everything}) == len(everything)
  assert len({example["question"] for example in everything}) == len(everything)


def test_every_relation_is_asked_in_every_split(asked):
  for split in SPLITS:
    found = {example["id"].split("/")[1] for example in asked[split]}
    assert found == {relation.name for relation in RELATIONS}


@pytest.mark.parametrize("split", SPLITS)
def test_no_split_names_a_country_of_another(asked, split):
  others = frozenset().union(*(names_of(other) for other in SPLITS if other != split))
  for example in asked[split]:
    for text in (example["question"], *example["answers"]):
      assert not mentions(text, others), (text, example["id"])


def test_countries_with_a_name_or_fact_in_common_stay_together():
  groups = {country.code: country.group for country in countries()}
  assert groups["CD"] == groups["CG"]
  assert len({groups[code] for code in ("GN", "GQ", "GW", "PG")}) == 1
  assert groups["DM"] == groups["DO"]  # Dominican
  for one in countries():
    for other in countries():
      if one.split != other.split:
        assert not set(one.names) & set(other.names)
        assert not set(one.capitals) & set(other.capitals)


def test_known_facts(asked):
  everything = {example["id"]: example for split in SPLITS for example in asked[split]}
  lima = everything["PE/capital_to_currency/0"]
  assert lima["question"] == "What is the currency of the country whose capital is Lima?"
  assert lima["answers"][0] == "Peruvian sol" and {"sol", "PEN"} <= set(lima["answers"])
  assert everything["NL/capital/0"]["question"] == "What is the capital of the Netherlands?"
  assert everything["US/currency/0"]["answers"][0] == "US dollar"
  assert {"Ivory Coast", "Cote d'Ivoire"} <= set(everything["CI/country_of_capital/0"]["answers"])
  assert everything["BR/continent/0"]["answers"][0] == "South America"
  assert everything["KZ/capital/0"]["answers"][0] == "Astana"
  assert "SG/country_of_capital/0" not in everything  # the answer would stand in the question


def test_no_answer_is_junk(asked):
  for split in SPLITS:
    for example in asked[split]:
      assert example["question"].endswith("?") or example["question"].endswith(".")
      assert "None" not in example["question"] and "  " not in example["question"]
      assert len(set(example["answers"])) == len(example["answers"])
      for answer in example["answers"]:
        assert answer == answer.strip() and answer and "," not in answer[:1]


def test_tables_of_names():
  assert currency_names("JPY") == ("Japanese yen", "yen", "JPY")
  assert currency_names("CHW") == ()
  assert language_names("fa")[:2] == ("Persian", "Farsi")
  assert language_names("xx") == ()


def test_mentions_whole_words_with_or_without_accents():
  names = frozenset({"Niger", "Côte d'Ivoire"})
  assert mentions("in niger, say", names)
  assert mentions("Cote  d'Ivoire", names)
  assert not mentions("Nigeria", names)
  assert not mentions("niger", names, any_case=False)


def test_prepared_rows_are_the_generated_ones_with_what_is_told_of_them(cache, asked):
  for split in SPLITS:
    source = open_source(f"world_facts/{split}")
    assert {example["id"]: example for example in source} == {
      example["id"]: example | {"kind": kind_of(example), "first_hop": first_hop_of(example)}
      for example in asked[split]
    }
    assert source.datasets == ()  # so that they are drawn and scored as one


@pytest.mark.parametrize(
  "question, kind",
  [
    ("What is the capital of the Netherlands?", "1_hop"),
    ("Which country are Mongolian people from?", "1_hop"),
    ("What is the currency of the country whose capital is Lima?", "2_hops"),
    ("On which continent is the city of Lisbon?", "2_hops"),
    ("What is the capital of the country whose people are called Peruvian?", "2_hops"),
  ],
)
def test_a_question_is_of_two_hops_where_the_country_has_to_be_found_first(asked, question, kind):
  everything = {example["question"]: example for rows in asked.values() for example in rows}
  assert kind_of(everything[question]) == kind


@pytest.mark.parametrize(
  "question, first_hop",
  [
    ("What is the currency of the country whose capital is Lima?", "Peru"),
    ("On which continent is the city of Lisbon?", "Portugal"),
    ("What is the capital of the country whose people are called Peruvian?", "Peru"),
    ("What is the capital of the Netherlands?", "Amsterdam"),
    ("Which country are Mongolian people from?", "Mongolia"),
  ],
)
def test_the_first_of_two_hops_is_the_country_and_of_one_the_answer(asked, question, first_hop):
  everything = {example["question"]: example for rows in asked.values() for example in rows}
  assert first_hop_of(everything[question])[0] == first_hop


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_both_kinds(asked, split):
  counted = Counter(kind_of(example) for example in asked[split])
  assert set(counted) == {"1_hop", "2_hops"} and 0.2 < counted["2_hops"] / counted.total() < 0.4


def test_what_is_told_of_rows_is_no_part_of_the_digest_that_runs_know_them_by(cache, monkeypatch):
  named = open_source("world_facts/validation")
  monkeypatch.setattr(WorldFacts, "derived", {})
  monkeypatch.setattr("frozen_jax.data.sources._BUILTIN", {})
  monkeypatch.setattr("frozen_jax.data.prepared._DIGESTS", {})
  bare = open_source("world_facts/validation")
  assert {"kind", "first_hop"}.isdisjoint(bare[0]) and named[0]["kind"] in ("1_hop", "2_hops")
  assert bare.digest == named.digest


def test_two_processes_at_once_prepare_equal_data(tmp_path):
  program = (
    "import sys; from frozen_jax.data.sources import open_source;"
    "s = open_source('world_facts/test'); print([e['id'] for e in s]);"
    "print('tensorflow' in sys.modules)"
  )
  environment = {"FROZEN_JAX_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
  command = [sys.executable, "-c", program]
  # Set hashing apart, so that an order taken from a set would show.
  started = [
    subprocess.Popen(
      command,
      env=environment | {"PYTHONHASHSEED": seed},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for seed in ("1", "2")
  ]
  (first, noise), (second, _) = [process.communicate(timeout=HANGS_AFTER) for process in started]
  assert [process.returncode for process in started] == [0, 0], noise
  assert first == second and first.splitlines()[-1] == "False"
  assert len(first.splitlines()) == 2  # nothing else was printed
  assert "examples/s" not in noise
  assert [path.name for path in (tmp_path / "datasets").iterdir()] == [
    path.name for path in (tmp_path / "datasets").glob("world_facts-*")
  ]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(UserError, match="cannot prepare the data set world_facts"):
    open_source("world_facts/train")
