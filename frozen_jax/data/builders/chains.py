"""The data set `chains`: questions of several hops, all of whose facts are told before them.

    Ben's friend is Carl. Kate's friend is Anna. ... Anna's friend's friend is -> Carl

It is p-hop induction (Saunshi et al. 2025, arXiv 2502.17416) in words: nothing has to be known, so
what it takes is depth. Six of eighteen names stand in a round, each the friend of the one before
it, and the six statements are in any order. A walk of up to five hops meets no name twice, one of
up to three is no shorter the other way round, and a guess among the other five names is right for
20%.

Splits have one to three hops, in equal parts; `longer` has four, which none of the others has. No
set of statements occurs twice, in whatever order or split.
"""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from frozen_jax.data.builders.words import words_of
from frozen_jax.data.builtin import BUILTIN_DATASETS
from frozen_jax.data.examples import Derived, Example

SPLITS = BUILTIN_DATASETS["chains"].splits

NAMES = words_of(
  "Anna Ben Carl David Emma Frank Grace Henry Jack Kate Lucy Maria Nick Oscar Paul Rose Sam Tom"
)
ROUND = 6  # names of a question
SIZES = {"train": 12_000, "validation": 600, "test": 900, "longer": 600}
_HOPS = (1, 2, 3)
_LONGER = (4,)
_SEED = 0


def kind_of(example: Example) -> str:
  """The kind of a question, by its id."""
  return example["id"].rpartition("/")[2]


def first_hop_of(example: Example) -> list[str]:
  """The friend of the name that is asked about; of one hop the answer."""
  told, _, asked = example["question"].rpartition(". ")
  name = asked.partition("'")[0]
  return re.findall(rf"\b{name}'s friend is (\w+)", told)


class Chains(tfds.core.GeneratorBasedBuilder):
  """Statements and a question to be completed: {"id", "question", "answers"}.

  An id is "NUMBER/KIND", its kind the number of hops: `1_hop`, `2_hops`, ...
  """

  VERSION = tfds.core.Version("1.0.0")

  derived: ClassVar[Derived] = {"kind": kind_of, "first_hop": first_hop_of}

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {"id": text(), "question": text(), "answers": tfds.features.Sequence(text())}
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    by_split = examples()
    return {split: self._generate_examples(by_split[split]) for split in SPLITS}

  def _generate_examples(self, of_split: list[Example]) -> Iterator[tuple[str, Example]]:
    for example in of_split:
      yield example["id"], example


def examples() -> dict[str, list[Example]]:
  """The examples of every split, always the same."""
  random_state = random.Random(_SEED)
  used: set[frozenset[str]] = set()
  return {split: list(_of_split(split, random_state, used)) for split in SPLITS}


def _of_split(
  split: str, random_state: random.Random, used: set[frozenset[str]]
) -> Iterator[Example]:
  """Examples of a split. used: the sets of statements that there are, its own added to them."""
  hops_in_turn = itertools.cycle(_LONGER if split == "longer" else _HOPS)
  for _, hops in zip(range(SIZES[split]), hops_in_turn, strict=False):
    statements, names = _round(random_state)
    while frozenset(statements) in used:
      statements, names = _round(random_state)
    used.add(frozenset(statements))
    kind = f"{hops}_hops" if hops > 1 else "1_hop"
    asked = names[0] + hops * "'s friend"
    yield {
      "id": f"{len(used)}/{kind}",
      "question": f"{' '.join(statements)} {asked} is",
      "answers": [names[hops]],
    }


def _round(random_state: random.Random) -> tuple[list[str], list[str]]:
  """Statements in any order, and the names in theirs: each has the next one as a friend."""
  names = random_state.sample(NAMES, ROUND)
  friends = [*names[1:], names[0]]
  pairs = zip(names, friends, strict=True)
  statements = [f"{name}'s friend is {friend}." for name, friend in pairs]
  random_state.shuffle(statements)
  return statements, names
