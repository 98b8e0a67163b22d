"""Scoring any number of (question, passage) pairs by a re-ranker, in batches of few shapes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from frozen_jax.core.device import per_backend
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import Tree
from frozen_jax.data.pair_encoder import Pair, PairEncoder, pad_pairs
from frozen_jax.methods.re_ranker import ReRanker
from frozen_jax.sharding.batch import shard_batch, with_sharding_constraint
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.rules import replicated, row_groups
from frozen_jax.text.padding import power_of_two

# Tokens of a batch, with their padding: enough to keep the device busy.
_MAX_TOKENS = {"cpu": 2**12, "gpu": 2**16}
_CHUNK_SIZE = 2**14  # pairs that are held as token ids at once
_PROGRESS_DELAY = 5  # seconds before a progress bar shows


def score_pairs(
  re_ranker: ReRanker,
  trainable: Tree,
  frozen: Tree,
  encoder: PairEncoder,
  pairs: Sequence[tuple[str, str]],
  mesh: Mesh | None = None,
  max_tokens: int | None = None,
  progress: bool = True,
) -> Float32[np.ndarray, " N"]:
  """The score of each (question, passage), in the order given; the higher the better.

  Texts are sorted by length, and a batch takes as many as `max_tokens` tokens hold (None: a number
  for the backend in use). So there is little padding, and one shape for each of the encoder's
  lengths that occurs. The other texts of a batch change nothing but rounding. Every host scores all
  pairs, rows split over the mesh.

  Raises:
    UserError: a question that leaves no room for a passage.
  """
  scores = np.zeros(len(pairs), np.float32)
  groups = 1 if mesh is None else row_groups(mesh)
  network = _network(re_ranker, trainable, frozen)
  max_tokens = max_tokens or per_backend(_MAX_TOKENS)
  hidden = not progress or not is_first_host()
  with ProgressBar(
    total=len(pairs), desc="re-rank", unit="pair", disable=hidden, delay=_PROGRESS_DELAY
  ) as bar:
    for start in range(0, len(pairs), _CHUNK_SIZE):
      texts = encoder(pairs[start : start + _CHUNK_SIZE])
      pending: list[tuple[list[int], jax.Array]] = []
      for rows, width, size in _batches(texts, encoder.lengths, max_tokens, groups):
        batch = shard_batch(pad_pairs([texts[row] for row in rows], (width,), size), mesh)
        pending.append((rows, _scores(re_ranker, network, batch, out_sharding=replicated(mesh))))
        if len(pending) > 1:  # the next batch is padded while this one is computed
          _read(pending.pop(0), scores[start:], bar)
      for last in pending:
        _read(last, scores[start:], bar)
  return scores


def _read(scored: tuple[list[int], jax.Array], scores: np.ndarray, bar: Any) -> None:
  rows, values = scored
  scores[rows] = np.asarray(values)[: len(rows)]
  bar.update(len(rows))


def _batches(
  texts: Sequence[Pair], lengths: Sequence[int], max_tokens: int, multiple: int
) -> list[tuple[list[int], int, int]]:
  """(indices of the texts, T, number of rows) of each batch, the longest texts first."""
  by_length = sorted(range(len(texts)), key=lambda row: -len(texts[row].tokens))
  batches, start = [], 0
  while start < len(by_length):
    width = next(length for length in lengths if length >= len(texts[by_length[start]].tokens))
    max_rows = max(max_tokens // width // multiple, 1) * multiple
    rows = by_length[start : start + max_rows]
    size = -(-min(max_rows, power_of_two(len(rows))) // multiple) * multiple
    batches.append((rows, width, size))
    start += max_rows
  return batches


@functools.partial(jax.jit, static_argnums=0)
def _network(re_ranker: ReRanker, trainable: Tree, frozen: Tree) -> Tree:
  return re_ranker.network(trainable, frozen)


@functools.partial(jax.jit, static_argnames=("re_ranker", "out_sharding"))
def _scores(
  re_ranker: ReRanker,
  network: Tree,
  batch: dict[str, jax.Array],
  out_sharding: jax.sharding.Sharding | None,
) -> Float[Array, " R"]:
  scores = re_ranker.scores(network, batch)[:, 0]
  return with_sharding_constraint(scores, out_sharding)
