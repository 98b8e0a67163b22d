"""Chains: what is asked follows from what is told alone, and no shorter way leads to it."""

import hashlib
import json
import re
from collections import Counter

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.builders.chains import NAMES, ROUND, SIZES, SPLITS, Chains, examples, kind_of
from frozen_jax.data.mixture import check_held_out
from frozen_jax.data.sources import open_source

STATEMENT = re.compile(r"(\w+)'s friend is (\w+)\.")
KINDS = {split: ["1_hop", "2_hops", "3_hops"] for split in SPLITS} | {"longer": ["4_hops"]}


@pytest.fixture(scope="module")
def by_split():
  return examples()


def read(example):
  """(statements in order, the name that is asked about, how often "friend" follows it)."""
  told, _, asked = example["question"].rpartition(". ")
  name, *friends = asked.removesuffix(" is").split("'s ")
  assert friends and set(friends) == {"friend"}
  return STATEMENT.findall(f"{told}."), name, len(friends)


@pytest.mark.parametrize("split", SPLITS)
def test_sizes_and_kinds(by_split, split):
  rows = by_split[split]
  counted = Counter(kind_of(one) for one in rows)
  assert len(rows) == SIZES[split] and sorted(counted) == KINDS[split]
  assert len(set(counted.values())) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_where_the_walk_ends_and_it_meets_no_name_twice(by_split, split):
  for example in by_split[split]:
    statements, name, hops = read(example)
    friend_of = dict(statements)
    assert len(friend_of) == len(statements) == ROUND
    assert set(friend_of) == set(friend_of.values()) <= set(NAMES)
    met = [name]
    for _ in range(hops):
      met.append(friend_of[met[-1]])
    assert len(set(met)) == len(met) and example["answers"] == [met[-1]]
    kind = f"{hops}_hop{'s' * (hops > 1)}"
    assert kind_of(example) == kind and example["id"].endswith(f"/{kind}")


def test_no_set_of_statements_is_told_twice_in_any_order(by_split):
  told = [frozenset(read(one)[0]) for rows in by_split.values() for one in rows]
  assert len(set(told)) == len(told) == sum(SIZES.values())
  ids = [one["id"] for rows in by_split.values() for one in rows]
  assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", SPLITS)
def test_a_guess_is_right_for_a_fifth(by_split, split):
  """By the place of a statement in the text, or by the name itself."""
  places, names = Counter(), Counter()
  for example in by_split[split]:
    statements, asked, _ = read(example)
    (answer,) = example["answers"]
    assert answer != asked
    names[answer] += 1
    for place, (name, friend) in enumerate(statements):
      places["friend", place] += friend == answer
      places["name", place] += name == answer
  rows = len(by_split[split])
  assert all(abs(count / rows - 1 / ROUND) < 0.06 for count in places.values())
  assert set(names) == set(NAMES) and max(names.values()) < 1.5 * rows / len(NAMES)


def test_two_hops_are_not_answered_by_one(by_split):
  """Nor by the statement of the answer's own friend, the way back."""
  for example in by_split["test"]:
    statements, name, hops = read(example)
    backwards = {friend: name for name, friend in statements}
    if hops > 1:
      assert example["answers"] != [dict(statements)[name]]
      assert example["answers"] != [backwards[name]]


def test_they_are_always_the_same(by_split):
  text = json.dumps(by_split)
  assert json.dumps(examples()) == text
  digest = hashlib.sha256(text.encode()).hexdigest()
  assert digest.startswith("d4c040276dc78d40"), "figures were measured on other rows"


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_hop_is_the_friend_of_the_name_that_is_asked_about(by_split, split):
  for example in by_split[split]:
    statements, name, hops = read(example)
    first_hop = Chains.derived["first_hop"](example)
    assert first_hop == [dict(statements)[name]]
    assert (first_hop == example["answers"]) == (hops == 1)


def test_prepared_rows_are_the_generated_ones_with_what_is_told_of_them(cache, by_split):
  told = lambda one: {name: value_of(one) for name, value_of in Chains.derived.items()}
  for split in SPLITS:
    source = open_source(f"chains/{split}")
    expected = {one["id"]: one | told(one) for one in by_split[split]}
    assert {one["id"]: one for one in source} == expected
    assert source.datasets == ()


@pytest.mark.parametrize("name", ["chains/validation", "world_facts/validation"])
def test_the_first_hop_may_be_what_is_trained_on(cache, name):
  whole, first = (open_source(name, fields) for fields in ((), ("answers=first_hop",)))
  of_kind = lambda one: one["kind"] == "1_hop"
  pairs = [(whole[index], first[index]) for index in range(len(whole))]
  assert all((one["answers"] == other["answers"]) == of_kind(one) for one, other in pairs)
  assert whole.digest != first.digest


def test_longer_ones_may_be_held_out_and_others_not(cache):
  train = open_source("chains/train")
  check_held_out(train, [open_source("chains/longer")])
  with pytest.raises(UserError, match="chains/test is held out, and chains of it"):
    check_held_out(train, [open_source("chains/test")])
  assert open_source("chains/train,chains/longer").datasets == ("chains", "chains/longer")


def test_every_batch_of_rows_has_all_kinds(cache):
  """Rows are stored in an order of their own, so that the first ones represent the split."""
  source = open_source("chains/test")
  counted = Counter(source[index]["kind"] for index in range(90))
  assert sorted(counted) == KINDS["test"] and min(counted.values()) > 15
