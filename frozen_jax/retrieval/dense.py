"""Exact search among a corpus' vectors, by blocked products on the devices of a mesh.

The score of a passage is the inner product of the question's float32 vector with the stored one:
products and sum in float64, summed in a fixed order, then rounded to float32 (`inner_products`).
Passages are ranked by score, then by position. Every IEEE machine gets the same bits.

A device's float32 products depend on how they are blocked, so they only select candidates: the k
best and a few more. They differ from the true products by at most a known amount, so the lowest
candidate's score bounds those of all passages that were not selected. Where that bound is not below
the k-th exact score, more candidates are selected, and in the last resort all passages are scored.

Why not faiss: its flat index does not guarantee these results (its float32 sums rank near ties by
how they round, and vary with the blocking), and it does not search vectors that are sharded over
the devices of a mesh. On CPU it is faster: among 1 million vectors of width 384, 256 questions take
907 ms with faiss-cpu's `IndexFlatIP` and 1,618 ms here, on two cores (benchmarks/dense_search.py;
docs/results/speed_dense_search.md).
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.dense_index import VECTOR_DTYPES, DenseIndex, Embed, embed_sorted
from frozen_jax.retrieval.retriever import (
  SearchResult,
  check_k,
  concatenate_results,
  empty_result,
  top_k,
)
from frozen_jax.sharding import hosts
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.text.padding import power_of_two

DEVICE_BYTES = 2**32

_SCORE_BYTES = 2**24  # scores that a device computes at once: what a CPU's cache holds
_RESCORE_BYTES = 2**23  # candidates' vectors, in float64, that are scored exactly at once
_PRODUCT_BYTES = 2**20  # products in float64 that are summed at once
_QUERY_BATCH = 256
_ROW_MULTIPLE = 128  # a device's rows of a block are a multiple of it
_EXTRA_CANDIDATES = 28  # beyond k, at least


class DenseRetriever:
  """A `Retriever` by vectors; a score is the inner product of the question's and the passage's.

  The index is sharded over all devices of the mesh. It stays on them if each device's share takes
  at most `device_bytes`; otherwise its blocks stream from disk at each search.
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
    """embed: up to `batch` questions -> float32 [N, width]. mesh: None is the default device."""
    self.index, self._embed, self._batch = index, embed, batch
    self._mesh = make_mesh() if mesh is None else mesh
    rows_per_device = -(-len(index) // self._mesh.size)
    vector_bytes = index.width * np.dtype(VECTOR_DTYPES[index.dtype]).itemsize
    self._fits_on_devices = rows_per_device * vector_bytes <= device_bytes
    # While blocks stream, two of them are on a device.
    capacity = rows_per_device if self._fits_on_devices else device_bytes // 2 // vector_bytes
    capacity = min(max(capacity, 1), _SCORE_BYTES // (4 * _QUERY_BATCH))
    max_rows = max(capacity // _ROW_MULTIPLE, 1) * _ROW_MULTIPLE
    num_blocks = -(-rows_per_device // max_rows)
    rows = -(-rows_per_device // num_blocks)  # of a block on one device; all blocks are equal
    self._block_rows = -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE * self._mesh.size
    self._device_blocks: list[jax.Array] = []

  @property
  def corpus_fingerprint(self) -> str:
    return self.index.corpus_fingerprint

  def __len__(self) -> int:
    return len(self.index)

  def search(self, queries: Sequence[str], k: int) -> SearchResult:
    """The k best passages of each question; UserError where k is not from 1 to N."""
    check_k(k, len(self))
    if not queries:
      return empty_result(k)
    return self.search_vectors(embed_sorted(queries, self._embed, self._batch), k)

  def search_vectors(self, vectors: np.ndarray, k: int) -> SearchResult:
    """As `search`, for the questions' float32 vectors [Q, width]; UserError for another width."""
    check_k(k, len(self))
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != self.index.width:
      raise UserError(
        f"the questions' vectors are {list(vectors.shape)} and the index {self.index.folder} has "
        f"width {self.index.width}; embed them with the encoder that belongs to the index"
      )
    ids, scores = np.zeros((len(vectors), k), np.int64), np.zeros((len(vectors), k), np.float32)
    pending = np.arange(len(vectors))
    count = min(k + max(_EXTRA_CANDIDATES, k // 8), len(self))
    for factor in (1, 8):
      if len(pending):
        result, proven = self._search_candidates(
          vectors[pending], k, min(factor * count, len(self))
        )
        ids[pending[proven]], scores[pending[proven]] = (array[proven] for array in result)
        pending = pending[~proven]
    if len(pending):  # a great many passages are equal, or the question's vector is zero
      ids[pending], scores[pending] = self._search_all(vectors[pending], k)
    return SearchResult(ids, scores)

  def _search_all(self, vectors: np.ndarray, k: int) -> SearchResult:
    """The best k by the exact scores of all passages, read from disk in steps."""
    ids, scores = np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
    result = SearchResult(ids, scores)
    step = max(k, _RESCORE_BYTES // (8 * len(vectors) * self.index.width))
    for first in range(0, len(self), step):
      stop = min(first + step, len(self))
      scores = inner_products(vectors, self.index.rows(first, stop)[None])
      ids = np.broadcast_to(np.arange(first, stop), scores.shape)
      ids = np.concatenate([result.ids, ids], axis=1)
      result = top_k(np.concatenate([result.scores, scores], axis=1), k, ids)
    return result

  def _search_candidates(
    self, vectors: np.ndarray, k: int, count: int
  ) -> tuple[SearchResult, np.ndarray]:
    """The best k of `count` candidates, and for which questions they are proven the best of all."""
    device_scores, candidates = self._candidates(vectors, count)
    step = max(1, _RESCORE_BYTES // (8 * count * self.index.width))

    def rescore(first: int) -> SearchResult:
      rows = slice(first, first + step)
      scores = inner_products(vectors[rows], self.index.gather(candidates[rows]))
      return top_k(scores, k, candidates[rows])

    result = concatenate_results([rescore(first) for first in range(0, len(vectors), step)])
    if count == len(self):
      return result, np.ones(len(vectors), bool)
    # d products and d sums round by 2^-24 each, relative to the vectors' norms; twice that.
    norms = np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1)) * self.index.max_norm
    error = (self.index.width + 16) * 2.0**-23 * norms
    lowest = device_scores.min(axis=1).astype(np.float64)
    bound = lowest + error + 2.0**-22 * np.abs(lowest)  # the last term: rounding to float32
    return result, result.scores[:, -1] > bound

  def _candidates(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The devices' scores float32 [Q, count] and positions [Q, count], best first."""
    size = min(_QUERY_BATCH, power_of_two(len(vectors), 8))
    batches = [vectors[first : first + size] for first in range(0, len(vectors), size)]
    replicated = NamedSharding(self._mesh, PartitionSpec())
    questions, tops = [], []
    for batch in batches:
      pad_sequences = np.zeros((size, self.index.width), np.float32)
      pad_sequences[: len(batch)] = batch
      no_scores = np.full((size, count), -np.inf, np.float32), np.zeros((size, count), np.int32)
      questions.append(hosts.global_device_put(pad_sequences, replicated))
      tops.append(hosts.global_device_put(no_scores, replicated))
    for first, block in self._blocks():
      tops = [
        _merge(self._mesh, question, block, np.int32(first), np.int32(len(self)), top)
        for question, top in zip(questions, tops, strict=True)
      ]
    scores, ids = (np.concatenate(parts) for parts in zip(*tops, strict=True))
    return scores[: len(vectors)], ids[: len(vectors)]

  def _blocks(self) -> Iterator[tuple[int, jax.Array]]:
    """The first position of each block and the block [rows, width], sharded over the devices."""
    for number, first in enumerate(range(0, len(self), self._block_rows)):
      if number < len(self._device_blocks):
        yield first, self._device_blocks[number]
        continue
      block = self._load_block(first)
      if self._fits_on_devices:
        self._device_blocks.append(block)
      yield first, block

  def _load_block(self, first: int) -> jax.Array:
    """A block [rows, width] of the index on the devices; rows after the last passage are zero."""

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(self._block_rows)
      end = min(first + stop, len(self))
      rows = np.zeros((stop - start, self.index.width), VECTOR_DTYPES[self.index.dtype])
      if first + start < end:
        rows[: end - first - start] = self.index.rows(first + start, end)
      return rows

    sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
    return jax.make_array_from_callback((self._block_rows, self.index.width), sharding, shard)


def inner_products(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Scores float32 [Q, rows] of vectors [Q, width] with rows [Q, rows, width], or [1, rows, width].

  The products of float32 numbers are exact in float64. The sum adds the upper half of the
  components to the lower half (of an odd number, the middle one is left as it is) until one
  remains. These are elementwise sums: they do not depend on the BLAS library of NumPy.
  """
  scores = np.empty((len(vectors), rows.shape[1]), np.float32)
  step = max(1, _PRODUCT_BYTES // (8 * rows.shape[2]))
  for query, vector in enumerate(vectors.astype(np.float64)):
    query_rows = rows[query if len(rows) > 1 else 0]
    for first in range(0, len(query_rows), step):
      products = query_rows[first : first + step] * vector  # [rows, width], float64
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
  """The best of the previous best and a block, by the devices' scores.

  Args:
    questions: float32 [Q, width]. block: [rows, width], sharded over the devices. first: position
      of its first row. size: N. top: the previous best, scores [Q, count] and positions [Q, count].
  """
  axes = mesh.axis_names

  def local(questions, block, first, size, top):
    start = first + lax.axis_index(axes) * len(block)
    scores = jnp.einsum(
      "qd,nd->qn", questions, block.astype(jnp.float32), precision=lax.Precision.HIGHEST
    )
    scores = jnp.where(start + jnp.arange(len(block)) < size, scores, -jnp.inf)
    local_scores, columns = lax.top_k(scores, min(top[0].shape[1], len(block)))
    gathered = (
      jnp.moveaxis(lax.all_gather(array, axes), 0, 1).reshape(len(questions), -1)
      for array in (local_scores, start + columns)
    )
    scores, ids = (
      jnp.concatenate([previous, array], 1) for previous, array in zip(top, gathered, strict=True)
    )
    scores, chosen = lax.top_k(scores, top[0].shape[1])
    return scores, jnp.take_along_axis(ids, chosen, 1)

  replicated = PartitionSpec()
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(replicated, PartitionSpec(axes), replicated, replicated, replicated),
    out_specs=replicated,
    check_vma=False,  # gathered arrays are equal on all devices
  )(questions, block, first, size, top)
