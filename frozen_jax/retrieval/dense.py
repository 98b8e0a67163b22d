"""Exact search among a corpus' vectors, by blocked products on the devices of a mesh.

What "exact" means: the score of a passage is the inner product of the question's float32 vector
with the stored one, products and sum in float64, summed in a fixed order, then rounded to float32
(`inner_products`); the order is by that score, then by position. Every IEEE machine gets the same
bits. The devices' own float32 products depend on how they are blocked, so they only choose
candidates: the k best and some more. Such a product differs from the true one by at most a known
amount, so the last candidate's score bounds those of all passages that were left out; where that
bound is not below the k-th exact score, more candidates are taken, and at last all passages.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.dense_index import DTYPES, DenseIndex, Embed, embed_sorted
from frozen_jax.retrieval.retriever import Found, best, check_count
from frozen_jax.sharding import hosts
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.text.padding import power_of_two

DEVICE_BYTES = 2**32

_SCORE_BYTES = 2**24  # of the scores that a device computes at once: what a CPU's cache holds
_TAKEN_BYTES = 2**23  # of the candidates' vectors, in float64, that are scored at once
_CACHE_BYTES = 2**20  # of float64 that inner products take at once
_QUERIES = 256  # at once
_ROUND = 128  # a device's rows of a block are a multiple of it
_MORE = 28  # candidates beyond k


class Dense:
  """A `Retriever` by vectors; a score is the inner product of the question's and the passage's.

  The index is split over all devices of the mesh. It stays on them where `device_bytes` of each
  suffice; otherwise its blocks stream from disk at each search.
  """

  def __init__(
    self,
    index: DenseIndex,
    embed: Embed,
    mesh: Mesh | None = None,
    *,
    batch: int = 64,
    device_bytes: int = DEVICE_BYTES,
  ):
    """embed: up to `batch` questions -> float32 [n, d]. mesh: None is the default device."""
    self.index, self._embed, self._batch = index, embed, batch
    self._mesh = make_mesh() if mesh is None else mesh
    each = -(-len(index) // self._mesh.size)  # passages of a device
    vector_bytes = index.width * np.dtype(DTYPES[index.dtype]).itemsize
    self._keeps = each * vector_bytes <= device_bytes
    # While blocks stream, two of them are on a device.
    room = each if self._keeps else max(device_bytes // 2 // vector_bytes, 1)
    most = max(min(room, _SCORE_BYTES // (4 * _QUERIES)) // _ROUND, 1) * _ROUND
    columns = -(-each // -(-each // most))  # of as few blocks as there can be, all of a size
    self._block = -(-columns // _ROUND) * _ROUND * self._mesh.size
    self._kept: list[jax.Array] = []

  @property
  def corpus(self) -> str:
    return self.index.corpus

  def __len__(self) -> int:
    return len(self.index)

  def search(self, queries: Sequence[str], k: int) -> Found:
    """The k best passages of each question; UserError where k is not from 1 to N."""
    check_count(k, len(self))
    if not queries:
      return Found(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return self.search_vectors(embed_sorted(queries, self._embed, self._batch), k)

  def search_vectors(self, vectors: np.ndarray, k: int) -> Found:
    """As `search`, for the questions' vectors, float32 [Q, d]; UserError for another width too."""
    check_count(k, len(self))
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != self.index.width:
      raise UserError(
        f"the questions' vectors are {list(vectors.shape)} and the index {self.index.folder} has "
        f"width {self.index.width}; embed them with the encoder that belongs to the index"
      )
    ids, scores = np.zeros((len(vectors), k), np.int64), np.zeros((len(vectors), k), np.float32)
    left, count = np.arange(len(vectors)), min(k + max(_MORE, k // 8), len(self))
    for factor in (1, 8):
      if len(left):
        found, certain = self._find(vectors[left], k, min(factor * count, len(self)))
        ids[left[certain]], scores[left[certain]] = (part[certain] for part in found)
        left = left[~certain]
    if len(left):  # a great many passages are equal, or the question's vector is zero
      ids[left], scores[left] = self._all(vectors[left], k)
    return Found(ids, scores)

  def _all(self, vectors: np.ndarray, k: int) -> Found:
    """The best k by the exact scores of all passages, which stream by."""
    found = Found(np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32))
    step = max(k, _TAKEN_BYTES // (8 * len(vectors) * self.index.width))
    for first in range(0, len(self), step):
      stop = min(first + step, len(self))
      scores = inner_products(vectors, self.index.rows(first, stop)[None])
      ids = np.broadcast_to(np.arange(first, stop), scores.shape)
      ids = np.concatenate([found.ids, ids], axis=1)
      found = best(np.concatenate([found.scores, scores], axis=1), k, ids)
    return found

  def _find(self, vectors: np.ndarray, k: int, count: int) -> tuple[Found, np.ndarray]:
    """The best k of `count` candidates, and for which questions these are the best of all."""
    rough, candidates = self._candidates(vectors, count)
    step = max(1, _TAKEN_BYTES // (8 * count * self.index.width))

    def exact(first: int) -> Found:
      rows = slice(first, first + step)
      scores = inner_products(vectors[rows], self.index.take(candidates[rows]))
      return best(scores, k, candidates[rows])

    parts = [exact(first) for first in range(0, len(vectors), step)]
    found = Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    if count == len(self):
      return found, np.ones(len(vectors), bool)
    # d products and d sums round by 2^-24 each, relative to the vectors' lengths; twice that.
    lengths = np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1)) * self.index.longest
    error = (self.index.width + 16) * 2.0**-23 * lengths
    last = rough.min(axis=1).astype(np.float64)
    bound = last + error + 2.0**-22 * np.abs(last)  # the last: rounding to float32
    return found, found.scores[:, -1] > bound

  def _candidates(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The devices' scores float32 [Q, count] and positions [Q, count], best first."""
    size = min(_QUERIES, power_of_two(len(vectors), 8))
    groups = [vectors[first : first + size] for first in range(0, len(vectors), size)]
    spread = NamedSharding(self._mesh, PartitionSpec())
    questions, tops = [], []
    for group in groups:
      padded = np.zeros((size, self.index.width), np.float32)
      padded[: len(group)] = group
      nothing = np.full((size, count), -np.inf, np.float32), np.zeros((size, count), np.int32)
      questions.append(hosts.put(padded, spread))
      tops.append(hosts.put(nothing, spread))
    for first, block in self._blocks():
      last = np.int32(len(self))
      tops = [
        _merge(self._mesh, question, block, np.int32(first), last, top)
        for question, top in zip(questions, tops, strict=True)
      ]
    scores, ids = (np.concatenate(parts) for parts in zip(*tops, strict=True))
    return scores[: len(vectors)], ids[: len(vectors)]

  def _blocks(self) -> Iterator[tuple[int, jax.Array]]:
    """The first position of each block and the block [rows, d], split over the devices."""
    for number, first in enumerate(range(0, len(self), self._block)):
      if number < len(self._kept):
        yield first, self._kept[number]
        continue
      block = self._placed(first)
      if self._keeps:
        self._kept.append(block)
      yield first, block

  def _placed(self, first: int) -> jax.Array:
    """A block [rows, d] of the index on the devices; beyond the last passage it is zero."""

    def part(where: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = where[0].indices(self._block)
      until = min(first + stop, len(self))
      held = np.zeros((stop - start, self.index.width), DTYPES[self.index.dtype])
      if first + start < until:
        held[: until - first - start] = self.index.rows(first + start, until)
      return held

    sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
    return jax.make_array_from_callback((self._block, self.index.width), sharding, part)


def inner_products(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Scores float32 [Q, K] of vectors [Q, d] with rows [Q, K, d] (or [1, K, d], the same for all).

  The products of float32 numbers are exact in float64. Then the upper half of the components is
  added to the lower (of an odd number the middle one waits) until one is left: elementwise sums,
  which are the same whatever library NumPy multiplies matrices with.
  """
  scores = np.empty((len(vectors), rows.shape[1]), np.float32)
  step = max(1, _CACHE_BYTES // (8 * rows.shape[2]))
  for query, vector in enumerate(vectors.astype(np.float64)):
    of = rows[query if len(rows) > 1 else 0]
    for first in range(0, len(of), step):
      products = of[first : first + step] * vector  # [K, d], float64
      width = products.shape[1]
      while width > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:width]
        width = half
      scores[query, first : first + step] = products[:, 0]
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _merge(
  mesh: Mesh,
  questions: jax.Array,
  block: jax.Array,
  first: jax.Array,
  size: jax.Array,
  top: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """The best of a block and of what was found before.

  Args:
    questions: float32 [Q, d]. block: [n, d], split over the devices. first: position of its first
      row. size: N. top: scores [Q, K] and positions [Q, K].
  """
  axes = mesh.axis_names

  def local(questions, block, first, size, top):
    start = first + lax.axis_index(axes) * len(block)
    scores = jnp.einsum(
      "qd,nd->qn", questions, block.astype(jnp.float32), precision=lax.Precision.HIGHEST
    )
    scores = jnp.where(start + jnp.arange(len(block)) < size, scores, -jnp.inf)
    mine, columns = lax.top_k(scores, min(top[0].shape[1], len(block)))
    theirs = (
      jnp.moveaxis(lax.all_gather(part, axes), 0, 1).reshape(len(questions), -1)
      for part in (mine, start + columns)
    )
    scores, ids = (
      jnp.concatenate([before, part], 1) for before, part in zip(top, theirs, strict=True)
    )
    scores, chosen = lax.top_k(scores, top[0].shape[1])
    return scores, jnp.take_along_axis(ids, chosen, 1)

  whole = PartitionSpec()
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(whole, PartitionSpec(axes), whole, whole, whole),
    out_specs=whole,
    check_vma=False,  # what was gathered is the same everywhere
  )(questions, block, first, size, top)
