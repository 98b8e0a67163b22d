"""BM25 in Lucene's weighting: an index on disk, built in two passes and searched memory-mapped.

bm25s (Lù 2024) counts words, defines the files of the index and sums the scores; the formula is
`lucene` of Kamphuis et al. 2020. The builder is our own: that of bm25s holds every word of the
corpus in memory as Python objects. Its first pass writes the term frequencies of each passage to a
file, its second pass writes the scores into the memory-mapped index. Only the vocabulary and one
chunk of passages are in memory. The index equals that of bm25s, which can open it.

bm25s is imported where it is used: its import starts JAX, which must come after `jax.distributed`.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_folder
from frozen_jax.core.progress import ProgressBar
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.retrieval.retriever import (
  SearchResult,
  check_k,
  concatenate_results,
  empty_result,
  top_k,
)
from frozen_jax.retrieval.words import VERSION, words

if TYPE_CHECKING:
  import bm25s
  from bm25s.tokenization import Tokenizer

K1, B = 1.5, 0.75  # the defaults of bm25s; those of Lucene are 0.9 and 0.4

_CHUNK = 20_000  # passages
_DESCRIPTION, _PAIRS = "frozen_jax.json", "pairs"
_PAIR = np.dtype([("word", "<i4"), ("passage", "<i4"), ("count", "<i4")])


@dataclasses.dataclass(frozen=True, eq=False)
class BM25Retriever:
  """A `Retriever` of passages that share words with the question.

  Scores are sums over the question's words (`retrieval/words.py`); a passage that shares none has
  score 0: it was not found. English stop words and words of one letter do not count.
  """

  corpus_fingerprint: str
  _index: "bm25s.BM25"
  _tokenizer: "Tokenizer"

  def __len__(self) -> int:
    return self._index.scores["num_docs"]

  def search(self, queries: Sequence[str], k: int) -> SearchResult:
    """The k best passages of each question; UserError where k is not from 1 to N."""
    check_k(k, len(self))
    if not queries:
      return empty_result(k)
    word_ids = self._tokenizer.tokenize(list(queries), update_vocab="never", show_progress=False)
    return concatenate_results(
      [top_k(self._index.get_scores_from_ids(ids)[None], k) for ids in word_ids]
    )


def build_bm25(
  folder: str | pathlib.Path, corpus: Corpus, progress: bool = True, k1: float = K1, b: float = B
) -> BM25Retriever:
  """Builds the index of a corpus in a folder, which must not exist yet, and opens it.

  Args:
    k1: saturation of term frequencies. b: normalisation by the passage's length, 0 (none) to 1.
    progress: whether progress bars are shown on standard error.

  Raises:
    UserError: the folder exists, or cannot be written.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise UserError(f"{folder} exists; open the index that is there, or delete the folder")
  with atomic_folder(folder) as temporary:
    tokenizer = _tokenizer()
    counts = _count_words(temporary / _PAIRS, corpus, tokenizer, progress)
    _write_scores(temporary, counts, (k1, b), progress)
    (temporary / _PAIRS).unlink()
    vocabulary = json.dumps(tokenizer.word_to_id, ensure_ascii=False)
    (temporary / "vocab.index.json").write_text(vocabulary)
    settings = {"k1": k1, "b": b, "delta": 0.5, "method": "lucene", "idf_method": "lucene"}
    settings |= {"dtype": "float32", "int_dtype": "int32", "backend": "numpy"}
    settings |= {"num_docs": len(corpus), "version": importlib.metadata.version("bm25s")}
    (temporary / "params.index.json").write_text(json.dumps(settings, indent=2) + "\n")
    description = {"corpus": corpus.fingerprint, "words": VERSION}
    (temporary / _DESCRIPTION).write_text(json.dumps(description) + "\n")
  return open_bm25(folder, corpus)


def open_bm25(folder: str | pathlib.Path, corpus: Corpus) -> BM25Retriever:
  """Opens an index that `build_bm25` built; its arrays stay on disk.

  Raises:
    UserError: there is none, it is damaged, or it is of another corpus.
  """
  import bm25s

  folder = pathlib.Path(folder)
  try:
    description = json.loads((folder / _DESCRIPTION).read_text())
    fingerprint = description["corpus"]
    index = bm25s.BM25.load(folder, mmap=True)
  except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
    raise UserError(f"{folder} holds no whole index of BM25 ({error}); build it anew") from error
  if description.get("words") != VERSION:
    raise UserError(f"the index {folder} is of an earlier version's words; build it anew")
  if fingerprint != corpus.fingerprint:
    raise UserError(f"the index {folder} is of another corpus than {corpus.path}; build one of it")
  tokenizer = _tokenizer()
  tokenizer.word_to_id = index.vocab_dict
  return BM25Retriever(fingerprint, index, tokenizer)


def _tokenizer() -> "Tokenizer":
  from bm25s.tokenization import Tokenizer

  return Tokenizer(stopwords="english", splitter=words)


class _WordCounts(NamedTuple):
  """The statistics of the first pass.

  lengths: int64 [N], the number of words of each passage. document_frequency: int64 [words], the
  number of passages that contain each word. chunks: the number of pairs in each chunk of the file
  of pairs; within a chunk they are sorted by word, then by passage.
  """

  lengths: np.ndarray
  document_frequency: np.ndarray
  chunks: list[int]


def _count_words(
  path: pathlib.Path, corpus: Corpus, tokenizer: "Tokenizer", progress: bool
) -> _WordCounts:
  """Writes the file of (word, passage) pairs with their counts."""
  lengths, document_frequency = np.zeros(len(corpus), np.int64), np.zeros(0, np.int64)
  chunks = []
  with (
    path.open("wb") as file,
    ProgressBar(total=len(corpus), desc="BM25, words", disable=not progress, delay=2) as bar,
  ):
    for first in range(0, len(corpus), _CHUNK):
      positions = range(first, min(first + _CHUNK, len(corpus)))
      texts = [corpus[position].joined() for position in positions]
      ids = list(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False))
      sizes = np.array([len(one) for one in ids])
      lengths[first : first + len(ids)] = sizes
      word = np.fromiter(itertools.chain.from_iterable(ids), np.int64, int(sizes.sum()))
      passage = np.repeat(np.arange(first, first + len(ids)), sizes)
      keys, counts = np.unique(word << 32 | passage, return_counts=True)
      pairs = np.empty(len(keys), _PAIR)
      pairs["word"], pairs["passage"], pairs["count"] = keys >> 32, keys & 2**32 - 1, counts
      pairs.tofile(file)
      chunks.append(len(pairs))
      new_words = len(tokenizer.word_to_id) - len(document_frequency)
      document_frequency = np.pad(document_frequency, (0, new_words))
      document_frequency += np.bincount(pairs["word"], minlength=len(document_frequency))
      bar.update(len(texts))
  return _WordCounts(lengths, document_frequency, chunks)


def _write_scores(
  folder: pathlib.Path, counts: _WordCounts, constants: tuple[float, float], progress: bool
) -> None:
  """Writes the score of each word in each passage, a compressed sparse column (CSC) matrix."""
  lengths, document_frequency, chunks = counts
  if not len(document_frequency):
    raise UserError("no passage of the corpus has a word that counts; BM25 has nothing to find")
  (k1, b), n = constants, len(lengths)
  idf = np.log(1 + (n - document_frequency + 0.5) / (document_frequency + 0.5))
  length_norm = k1 * (1 - b + b * lengths / lengths.mean())  # [N]
  starts = np.concatenate([[0], np.cumsum(document_frequency)])
  np.save(folder / "indptr.csc.index.npy", starts)
  scores, passages = (
    np.lib.format.open_memmap(folder / f"{name}.csc.index.npy", "w+", dtype, (int(starts[-1]),))
    for name, dtype in (("data", np.float32), ("indices", np.int32))
  )
  next_entry = starts[:-1].copy()  # of each word
  with (folder / _PAIRS).open("rb") as file:
    for size in ProgressBar(chunks, "BM25, scores", disable=not progress, delay=2):
      pairs = np.fromfile(file, _PAIR, size)
      word, first, sizes = np.unique(pairs["word"], return_index=True, return_counts=True)
      entries = np.arange(size) + np.repeat(next_entry[word] - first, sizes)
      count = pairs["count"].astype(np.float64)
      passages[entries] = pairs["passage"]
      scores[entries] = idf[pairs["word"]] * (count / (length_norm[pairs["passage"]] + count))
      next_entry[word] += sizes
  scores.flush()
  passages.flush()
