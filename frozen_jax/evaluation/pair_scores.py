"""Scoring any number of questions with passages by a re-ranker, in batches of few shapes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from frozen_jax.core.device import suited
from frozen_jax.core.types import Tree
from frozen_jax.data.pairs import Pair, PairEncoder, pad_pairs
from frozen_jax.methods.re_ranker import ReRanker
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.place import constrained, everywhere, make_place
from frozen_jax.sharding.rules import row_groups
from frozen_jax.text.padding import power_of_two

# Tokens of one batch, with their padding: what keeps the device busy, and little more.
_AT_ONCE = {"cpu": 2**12, "gpu": 2**16}
_CHUNK = 2**14  # pairs whose texts are held at once
_QUIET = 5  # seconds before a progress bar shows


def score_pairs(
  re_ranker: ReRanker,
  trainable: Tree,
  frozen: Tree,
  encoder: PairEncoder,
  pairs: Sequence[tuple[str, str]],
  mesh: Mesh | None = None,
  at_once: int | None = None,
  progress: bool = True,
) -> np.ndarray:
  """The score of each (question, passage), float32 [N], in the order given; the higher the better.

  Texts are sorted by length and go together as many at once as `at_once` tokens hold (None: what
  suits the device), so that there is little padding and a shape for each of the encoder's lengths
  that occurs. What is beside a text in its batch changes nothing but rounding. Every host scores
  all pairs, rows split over the mesh.

  Raises:
    UserError: a question that leaves no room for a passage.
  """
  found = np.zeros(len(pairs), np.float32)
  place, groups = make_place(mesh), 1 if mesh is None else row_groups(mesh)
  whole, network = everywhere(mesh), _network(re_ranker, trainable, frozen)
  at_once = at_once or suited(_AT_ONCE)
  hidden = not progress or not is_first_host()
  with tqdm(total=len(pairs), desc="re-rank", unit="pair", disable=hidden, delay=_QUIET) as bar:
    for start in range(0, len(pairs), _CHUNK):
      texts = encoder(pairs[start : start + _CHUNK])
      ready: list[tuple[list[int], jax.Array]] = []
      for rows, width, size in _batches(texts, encoder.lengths, at_once, groups):
        batch = place(pad_pairs([texts[row] for row in rows], (width,), size))
        ready.append((rows, _scores(re_ranker, network, batch, out_sharding=whole)))
        if len(ready) > 1:  # one behind: the next batch is made while this one is computed
          _read(ready.pop(0), found[start:], bar)
      for last in ready:
        _read(last, found[start:], bar)
  return found


def _read(scored: tuple[list[int], jax.Array], found: np.ndarray, bar: Any) -> None:
  rows, values = scored
  found[rows] = np.asarray(values)[: len(rows)]
  bar.update(len(rows))


def _batches(
  texts: Sequence[Pair], lengths: Sequence[int], at_once: int, multiple: int
) -> list[tuple[list[int], int, int]]:
  """(which texts, T, how many rows) of each batch, the longest texts first."""
  order = sorted(range(len(texts)), key=lambda row: -len(texts[row].tokens))
  made, at = [], 0
  while at < len(order):
    width = next(length for length in lengths if length >= len(texts[order[at]].tokens))
    most = max(at_once // width // multiple, 1) * multiple
    rows = order[at : at + most]
    size = -(-min(most, power_of_two(len(rows))) // multiple) * multiple
    made.append((rows, width, size))
    at += most
  return made


@functools.partial(jax.jit, static_argnums=0)
def _network(re_ranker: ReRanker, trainable: Tree, frozen: Tree) -> Tree:
  return re_ranker.network(trainable, frozen)


@functools.partial(jax.jit, static_argnames=("re_ranker", "out_sharding"))
def _scores(
  re_ranker: ReRanker,
  network: Tree,
  batch: dict[str, jax.Array],
  out_sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  found = re_ranker.scores(network, batch)[:, 0]
  return constrained(found, out_sharding)
