"""Dense search against brute force in NumPy, bit for bit, on one device and on eight."""

import math

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval import dense
from frozen_jax.retrieval.dense import DenseRetriever, inner_products
from frozen_jax.retrieval.dense_index import build_dense
from frozen_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.program

WIDTH = 24


def brute_force(vectors, rows, k):
  """Every score in float64, the halves of the components (24, 12, 6, 3) folded onto each other."""
  parts = vectors.astype(np.float64)[:, None] * rows.astype(np.float64)
  for half in (12, 6, 3):
    parts = parts[..., :half] + parts[..., half:]
  scores = (parts[..., 0] + parts[..., 2]) + parts[..., 1]
  scores = scores.astype(np.float32)
  order = np.lexsort((np.broadcast_to(np.arange(len(rows)), scores.shape), -scores), axis=1)[:, :k]
  return order, np.take_along_axis(scores, order, 1)


@pytest.fixture
def indexed(make_corpus, tmp_path):
  """A function: vectors [N, d] -> an index of them."""

  def make(rows, dtype="float32", name="index"):
    corpus = make_corpus([str(index) for index in range(len(rows))])
    embed = lambda texts: rows[[int(text) for text in texts]]
    return build_dense(
      tmp_path / name, corpus, embed, "e", dtype=dtype, shard_rows=700, progress=False
    )

  return make


def random(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def check_equals_brute_force(retriever, vectors, rows, k):
  found = retriever.search_vectors(vectors, k)
  ids, scores = brute_force(vectors, rows, k)
  np.testing.assert_array_equal(found.ids, ids)
  np.testing.assert_array_equal(found.scores, scores)
  assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32


MESHES = [None, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equals_brute_force(indexed, sizes, dtype):
  index = indexed(random(5003), dtype)
  mesh = sizes and make_mesh(**sizes)
  rows = index.rows(0, len(index)).astype(np.float32)
  for count, k in ((300, 5), (3, 100), (1, 1)):
    check_equals_brute_force(DenseRetriever(index, None, mesh), random(count, 1), rows, k)


@pytest.mark.parametrize("sizes", MESHES)
def test_equal_passages_go_by_position(indexed, sizes):
  rows = np.concatenate([random(40), random(40), np.repeat(random(1, 3), 4000, axis=0)])
  index, mesh = indexed(rows), sizes and make_mesh(**sizes)
  vectors = np.concatenate([rows[[0, 5, 90]], -rows[[90]], np.zeros((1, WIDTH), np.float32)])
  check_equals_brute_force(DenseRetriever(index, None, mesh), vectors, rows, 7)


def test_near_ties_that_float32_products_would_misplace(indexed):
  random_ = np.random.default_rng(0)
  rows = np.repeat(random(1), 3000, axis=0) * np.float32(1e3)
  rows += random_.integers(-1, 2, rows.shape).astype(np.float32) * np.spacing(rows) * 4
  check_equals_brute_force(DenseRetriever(indexed(rows), None), rows[:9], rows, 50)


@pytest.mark.parametrize("sizes", MESHES[:2])
def test_blocks_that_stream_give_the_same(indexed, sizes, monkeypatch):
  monkeypatch.setattr(dense, "_ROW_MULTIPLE", 16)
  rows = random(5003)
  index, mesh = indexed(rows), sizes and make_mesh(**sizes)
  streamed = DenseRetriever(index, None, mesh, device_bytes=20_000)
  check_equals_brute_force(streamed, random(20, 1), rows, 6)
  assert len(list(streamed._blocks())) > 5 and not streamed._device_blocks
  kept = DenseRetriever(index, None, mesh)
  check_equals_brute_force(kept, random(20, 1), rows, 6)
  assert sum(len(block) for block in kept._device_blocks) >= 5003
  assert {len(block.sharding.device_set) for block in kept._device_blocks} == {8 if sizes else 1}


def test_scores_are_the_inner_products():
  vectors, rows = random(4), random(40, 1).reshape(4, 10, WIDTH)
  exact = [
    [math.fsum(float(a) * float(b) for a, b in zip(vector, row, strict=True)) for row in block]
    for vector, block in zip(vectors, rows, strict=True)
  ]
  np.testing.assert_array_equal(inner_products(vectors, rows), np.float32(exact))


def test_questions_are_embedded_and_found(indexed):
  rows = random(100)
  asked = []

  def embed(texts):
    asked.append(len(texts))
    return rows[[int(text) for text in texts]]

  retriever = DenseRetriever(indexed(rows / np.linalg.norm(rows, axis=1)[:, None]), embed, batch=4)
  found = retriever.search([str(index) for index in range(10)], 3)
  assert found.ids[:, 0].tolist() == list(range(10)) and asked == [4, 4, 2]
  assert (
    len(retriever) == 100 and retriever.corpus_fingerprint == retriever.index.corpus_fingerprint
  )
  assert retriever.search([], 3).ids.shape == (0, 3)
  with pytest.raises(UserError, match="ask for 1 to 100"):
    retriever.search(["1"], 101)
  with pytest.raises(UserError, match="has width 24"):
    retriever.search_vectors(rows[:, :9], 3)
  assert sorted(retriever.search(["7"], 100).ids[0].tolist()) == list(range(100))
