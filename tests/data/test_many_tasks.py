"""Many tasks: how many rows there are, that splits share none, and that what they say is true."""

import re
from collections import Counter, defaultdict

import pytest

from frozen_jax.data.builders.countries import countries, held_out_names, mentions
from frozen_jax.data.builders.many_tasks import HELD_OUT, SPLITS, examples, tasks
from frozen_jax.data.builders.task_generators import MONTHS, WEEKDAYS
from frozen_jax.data.builders.words import OPPOSITES, WORDS, WORDS_BY_KIND
from frozen_jax.data.indexed_rows import IndexedRows
from frozen_jax.data.mixture import check_held_out, stratified_sample
from frozen_jax.data.sources import open_source


@pytest.fixture(scope="module")
def by_split():
  return {split: list(examples(split)) for split in SPLITS}


def inputs(rows):
  return {example["input"] for example in rows}


def test_sizes(by_split):
  sizes = {split: len(rows) for split, rows in by_split.items()}
  assert sizes == {"train": 4532, "validation": 816, "test": 1138, "held_out": 780}
  assert len(tasks("train")) == 22 and set(tasks("held_out")) == set(HELD_OUT)
  for split, rows in by_split.items():
    counted = Counter(example["dataset"] for example in rows)
    assert set(counted) == set(tasks(split)) and min(counted.values()) >= 24


def test_each_task_has_three_templates_everywhere(by_split):
  for split, rows in by_split.items():
    templates = defaultdict(Counter)
    for example in rows:
      templates[example["dataset"]][example["template"]] += 1
    assert all(len(counted) == 3 for counted in templates.values()), split
    assert all(max(one.values()) <= min(one.values()) + 2 for one in templates.values())


def test_no_split_holds_an_item_of_another(by_split):
  everything = [example for split in SPLITS for example in by_split[split]]
  assert len({example["id"] for example in everything}) == len(everything)
  assert len({(e["dataset"], e["input"]) for e in everything}) == len(everything)
  for one in SPLITS:
    for other in SPLITS:
      assert one == other or not inputs(by_split[one]) & inputs(by_split[other])
  rows = {s: {tuple(e["id"].split("/")[:2]) for e in by_split[s]} for s in SPLITS}
  assert not rows["train"] & (rows["validation"] | rows["test"])
  assert not rows["validation"] & rows["test"]
  assert not {e["dataset"] for e in by_split["train"]} & set(HELD_OUT)


def test_the_same_sum_is_in_one_split_only(by_split):
  seen = {}
  for split, rows in by_split.items():
    for example in rows:
      if example["dataset"] in ("addition", "multiplication", "comparison"):
        numbers = frozenset(re.findall(r"\d+", example["input"]))
        assert seen.setdefault((example["dataset"], numbers), split) == split


def test_train_names_no_country_of_another_split(by_split):
  elsewhere = held_out_names()
  for example in by_split["train"]:
    texts = [example["input"], *example.get("answers", [example["target"]])]
    assert not mentions(" | ".join(texts), elsewhere), example
  trained = frozenset(n for one in countries() if one.split == "train" for n in one.names)
  for split in ("validation", "test", "held_out"):
    for example in by_split[split]:
      assert not mentions(example["input"], trained), example


def test_texts_are_short_and_whole(by_split):
  for rows in by_split.values():
    for example in rows:
      assert len(example["input"]) <= 160 and len(example["target"]) <= 60
      for text in (example["input"], *example.get("answers", [example["target"]])):
        assert text == text.strip() and text and not re.search(r"[{}\[\]]|None|Undefined", text)


def test_choices_hold_the_target_and_are_balanced(by_split):
  targets = defaultdict(Counter)
  for example in by_split["train"]:
    if choices := example.get("choices"):
      assert example["target"] in choices and len(set(choices)) == len(choices) >= 2
      if len(choices) == 2 and not choices[0].isdigit() and choices[0] not in MONTHS:
        targets[example["dataset"], example["template"]][example["target"]] += 1
  assert {dataset for dataset, _ in targets} == {
    "is_capital",
    "comparison",
    "parity",
    "month_order",
  }
  for counted in targets.values():
    assert len(counted) == 2 and min(counted.values()) > 0.35 * counted.total()
  with_choices = {
    e["dataset"] for s in ("train", "held_out") for e in by_split[s] if "choices" in e
  }
  assert len(with_choices) == 9


def numbers_of(example):
  return [int(number) for number in re.findall(r"\d+", example["input"])]


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_said_is_true(by_split, split):
  """The targets once more, from the inputs alone."""
  right = {
    "addition": lambda e, n: str(sum(n)),
    "subtraction": lambda e, n: str(n[0] - n[1]),
    "multiplication": lambda e, n: str(n[0] * n[1]),
    "days_between": lambda e, n: str(n[1] - n[0]),
    "sort_words": lambda e, n: ", ".join(sorted(e["target"].split(", "))),
    "largest_number": lambda e, n: str(min(n) if e["template"] == "smallest" else max(n)),
  }
  checked = 0
  for example in by_split[split]:
    if rule := right.get(example["dataset"]):
      assert example["target"] == rule(example, numbers_of(example)), example
      checked += 1
    if example["dataset"] == "weekday":
      known = next(day for day in WEEKDAYS if day in example["input"])
      first, second = numbers_of(example)
      assert WEEKDAYS.index(example["target"]) == (WEEKDAYS.index(known) + second - first) % 7
    if example["dataset"] == "next_month":
      now = next(month for month in MONTHS if month in example["input"])
      later = (MONTHS.index(now) + numbers_of(example)[0]) % 12
      assert example["target"] == MONTHS[later]
    if example["dataset"] == "odd_one_out":
      kinds = Counter(k for w in example["choices"] for k, ws in WORDS_BY_KIND.items() if w in ws)
      assert sorted(kinds.values()) == [1, 3]
      assert example["target"] in WORDS_BY_KIND[min(kinds, key=kinds.get)]
  assert checked > 100


def test_words_are_of_one_kind_and_have_one_opposite():
  assert len(set(WORDS)) == len(WORDS)
  opposites = [word for pair in OPPOSITES for word in pair]
  assert len(set(opposites)) == len(opposites) and all(len(pair) == 2 for pair in OPPOSITES)
  everywhere = frozenset(name for one in countries() for name in one.names)
  assert not any(mentions(word, everywhere) for word in (*WORDS, *opposites))


def test_prepared_rows_are_the_generated_ones(cache, by_split):
  for split in SPLITS:
    source = open_source(f"many_tasks/{split}")
    assert {example["id"]: example for example in source} == {e["id"]: e for e in by_split[split]}
    assert set(source.datasets) == set(tasks(split))
    assert source.template_index.max() + 1 == 3 * len(source.datasets)


def test_held_out_tasks_may_be_evaluated(cache):
  train = open_source("many_tasks/train")
  check_held_out(train, [open_source("many_tasks/held_out")])
  counted = Counter(train[int(i)]["dataset"] for i in stratified_sample(train, 220))
  assert min(counted.values()) >= 8 and len(counted) == 22


def test_a_split_is_read_once_in_a_process(monkeypatch):
  """A run opens each for every stage and every score; other examples are read on their own."""
  first = open_source("many_tasks/validation")
  refuse = lambda self: pytest.fail("all rows were read again")
  monkeypatch.setattr(IndexedRows, "_index_all_rows", refuse)
  again = open_source("many_tasks/validation")
  assert list(again) == list(first) and again.digest == first.digest
  for changed in ({"targets": False}, {"fields": ("input=question",)}):
    with pytest.raises(pytest.fail.Exception, match="read again"):
      open_source("many_tasks/validation", **changed)
