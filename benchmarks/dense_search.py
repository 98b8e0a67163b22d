"""Exact search among vectors against faiss: `python -m benchmarks.dense_search`.

Random vectors of length 1 (d 384, as MiniLM's) stand for passages, and questions are some of them
with noise. The peer is faiss-cpu's flat index of inner products (`IndexFlatIP`); both hold the
vectors in memory as float32 and give the 100 best passages of each question. Works are
`dense_search_PASSAGES_QUESTIONS`, for all questions at once and for one. The times of ours hold the
exact scores, read from the index on disk, by which the answer is the same on every machine.

Each side is a process of its own; they search in turn, and ratios are taken pair by pair.
`--json=FILE` also writes the rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import ours, pairs, worker
from benchmarks.training_step import machine
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
from frozen_jax.core.user_path import user_path
from frozen_jax.retrieval.corpus import Passage, open_corpus, write_corpus
from frozen_jax.retrieval.dense import DenseRetriever
from frozen_jax.retrieval.dense_index import build_dense, open_dense

WIDTH, K = 384, 100
SAME = 0.999  # of the places in the answers; faiss' products round otherwise


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--passages", type=int, nargs="*", default=[20_000, 1_000_000])
  parser.add_argument("--questions", type=int, nargs="*", default=[256, 1])
  parser.add_argument("--pairs", type=int, default=7, help="measured searches of each side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=user_path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    serve(options.side, options.folder, options.questions[0])
    return
  rows = []
  for passages in options.passages:
    with tempfile.TemporaryDirectory() as folder:
      os.environ["FROZEN_JAX_CACHE"] = folder  # nothing of this stays in the user's
      make(pathlib.Path(folder), passages, max(options.questions))
      rows += [
        row(pathlib.Path(folder), passages, questions, options.pairs)
        for questions in options.questions
      ]
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def make(folder: pathlib.Path, passages: int, questions: int) -> None:
  """Writes the vectors, the questions', and an index of the vectors."""
  random = np.random.default_rng(0)
  vectors = random.standard_normal((passages, WIDTH), np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  asked = vectors[random.integers(0, passages, questions)]
  asked += random.standard_normal(asked.shape, np.float32) / WIDTH**0.5
  np.save(folder / "passages.npy", vectors)
  np.save(folder / "questions.npy", asked / np.linalg.norm(asked, axis=1, keepdims=True))
  write_corpus(folder / "corpus.jsonl", (Passage(str(at), "", str(at)) for at in range(passages)))
  corpus = open_corpus(folder / "corpus.jsonl")
  embed = lambda texts: vectors[[int(text) for text in texts]]
  build_dense(folder / "index", corpus, embed, "random", batch=2**14, shard_rows=2**16)


def row(folder: pathlib.Path, passages: int, questions: int, count: int) -> dict[str, Any]:
  """Measures one work."""

  def side(name: str) -> pairs.Side:
    given = {"side": name, "folder": folder, "questions": questions}
    arguments = [f"--{key}={value}" for key, value in given.items()]
    return pairs.Side("benchmarks.dense_search", *arguments)

  with side("ours") as mine, side("faiss") as peer:
    measured = pairs.compare(mine, peer, count)
  found = [np.load(folder / f"{name}.npy") for name in SIDES]
  if (same := np.mean(found[0] == found[1])) < SAME:
    raise SystemExit(f"only {same:.2%} of what the sides found is the same")
  low, ratio, high = measured.ratios()
  result = {
    "work": f"dense_search_{passages}_{questions}",
    "ours": 1e3 * measured.median(0),
    "peer": 1e3 * measured.median(1),
    "peer_name": "faiss-cpu IndexFlatIP",
    "unit": "ms",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "same": float(same),
  }
  print(
    f"{result['work']:28} {result['ours']:9.1f} ms, {result['peer']:9.1f} by "
    f"{result['peer_name']}: {ratio:.2f} times (from {low:.2f} to {high:.2f} over the pairs), "
    f"memory {result['memory_ratio']:.2f}",
    flush=True,
  )
  return result


def serve(name: str, folder: pathlib.Path, count: int) -> None:
  """One side: searches when told to, and writes what it found to NAME.npy."""
  questions = np.load(folder / "questions.npy")[:count]
  search = SIDES[name](folder)

  def step() -> float:
    ids, scores = search(questions)
    np.save(folder / f"{name}.npy", ids)
    return float(np.mean(scores))

  worker.serve(step, functools.partial(ours.matrix_seconds, "float32"))


def _ours(folder: pathlib.Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  keep_freed_memory()  # as the command does
  wait_for_each_program()
  corpus = open_corpus(folder / "corpus.jsonl")
  retriever = DenseRetriever(
    open_dense(folder / "index", "random", corpus), lambda texts: np.empty(0)
  )
  return lambda questions: retriever.search_vectors(questions, K)


def _faiss(folder: pathlib.Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  import faiss

  # Its best for many questions: matrix products (by default loops, ten times slower here) of blocks
  # of passages larger than the default.
  faiss.cvar.distance_compute_blas_threshold = 20
  faiss.cvar.distance_compute_blas_database_bs = 2**13
  index = faiss.IndexFlatIP(WIDTH)
  index.add(np.load(folder / "passages.npy", mmap_mode="r"))
  return lambda questions: index.search(questions, K)[::-1]


SIDES = {"ours": _ours, "faiss": _faiss}

if __name__ == "__main__":
  main()
