"""The vectors of a corpus' passages on disk, memory-mapped; a killed build resumes.

A folder holds index.json, which identifies encoder and corpus, and .npy files ("shards") of
`shard_rows` rows each, which appear only when they are complete. During the build, build.json takes
the place of index.json. A vector's row is its passage's position in the corpus.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file
from frozen_jax.core.progress import ProgressBar
from frozen_jax.retrieval.corpus import Corpus

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> float32 [N, width]

VECTOR_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

_FORMAT = 1
_INDEX, _BUILD = "index.json", "build.json"


@dataclasses.dataclass(frozen=True)
class DenseIndex:
  """The vectors of all passages, [N, width] in `dtype`.

  passages: N. width: d. max_norm: the greatest Euclidean norm of a vector.
  """

  folder: pathlib.Path
  encoder_fingerprint: str
  corpus_fingerprint: str
  passages: int
  width: int
  dtype: str
  shard_rows: int
  max_norm: float
  _mapped: dict[int, np.ndarray] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )  # shard number -> its mapped rows: mapping costs more than reading

  def __len__(self) -> int:
    return self.passages

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The vectors of positions start to stop; a view of the file if they are in one shard."""
    parts = []
    for shard in range(start // self.shard_rows, -(-stop // self.shard_rows)):
      first = shard * self.shard_rows
      parts.append(self._shard(shard)[max(start - first, 0) : stop - first])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def gather(self, positions: np.ndarray) -> np.ndarray:
    """The vectors of these positions, [..., width]."""
    flat = positions.ravel()
    vectors = np.empty((len(flat), self.width), VECTOR_DTYPES[self.dtype])
    shards = flat // self.shard_rows
    for shard in np.unique(shards):
      in_shard = np.flatnonzero(shards == shard)
      rows = flat[in_shard] - shard * self.shard_rows
      vectors[in_shard] = np.take(self._shard(int(shard)), rows, axis=0)
    return vectors.reshape(*positions.shape, self.width)

  def _shard(self, number: int) -> np.ndarray:
    if number not in self._mapped:
      rows = min(self.shard_rows, self.passages - number * self.shard_rows)
      path = _shard_path(self.folder, number)
      self._mapped[number] = _map_shard(path, self.dtype, rows, self.width)
    return self._mapped[number]


def build_dense(
  folder: str | pathlib.Path,
  corpus: Corpus,
  embed: Embed,
  encoder: str,
  *,
  dtype: str = "float32",
  separator: str = " ",
  batch: int = 64,
  shard_rows: int = 2**14,
  progress: bool = True,
) -> DenseIndex:
  """Embeds every passage; shards that an earlier, killed call has finished are kept.

  Args:
    embed: up to `batch` texts -> float32 [N, width]; the texts are sorted by length, longest first.
    encoder: the encoder's fingerprint (of both, where questions have an encoder of their own).
    dtype: of the vectors on disk, one of `VECTOR_DTYPES`.
    separator: between a passage's title and its text (`" [SEP] "` for DPR's encoder).
    shard_rows: passages of a shard: at most as many are embedded again after a killed call.
    progress: whether a progress bar is shown on standard error.

  Raises:
    UserError: the folder holds an index of another encoder or corpus, or with other settings; it
      cannot be written; the vectors are not finite, or not all of one width.
  """
  folder = pathlib.Path(folder)
  identity = {
    "format": _FORMAT,
    "encoder": encoder,
    "corpus": corpus.fingerprint,
    "passages": len(corpus),
    "dtype": dtype,
    "shard_rows": shard_rows,
    "separator": separator,
  }
  if dtype not in VECTOR_DTYPES:
    raise UserError(
      f"vectors cannot be stored in {dtype!r}; choose one of {', '.join(VECTOR_DTYPES)}"
    )
  if (folder / _INDEX).exists() or (folder / _BUILD).exists():
    _check_identity(folder, identity)
  else:
    _write_json(folder / _BUILD, identity)
  if not (folder / _INDEX).exists():
    shards = range(-(-len(corpus) // shard_rows))
    done = [shard for shard in shards if _shard_path(folder, shard).exists()]
    initial = min(len(done) * shard_rows, len(corpus))
    hidden = not progress
    with ProgressBar(
      total=len(corpus), initial=initial, desc="embed", disable=hidden, delay=2
    ) as bar:
      for shard in sorted(set(shards) - set(done)):
        positions = range(shard * shard_rows, min((shard + 1) * shard_rows, len(corpus)))
        texts = [corpus[position].joined(separator) for position in positions]
        vectors = embed_sorted(texts, embed, batch, bar.update)
        _write_shard(_shard_path(folder, shard), vectors, dtype)
    _finalize(folder, identity, len(shards))
  return open_dense(folder, encoder, corpus)


def embed_sorted(
  texts: Sequence[str], embed: Embed, batch: int, report: Callable[[int], Any] = lambda count: None
) -> np.ndarray:
  """The texts' vectors float32 [N, width], in their order; embedded in batches of similar length.

  report: called with the number of texts after each batch.

  Raises:
    UserError: the vectors are not finite, or not one vector of the same width for each text.
  """
  longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
  vectors: np.ndarray | None = None
  for first in range(0, len(texts), batch):
    indices = longest_first[first : first + batch]
    embedded = np.asarray(embed([texts[index] for index in indices]), np.float32)
    if vectors is None and embedded.ndim == 2:
      vectors = np.empty((len(texts), embedded.shape[1]), np.float32)
    if vectors is None or embedded.shape != (len(indices), vectors.shape[1]):
      raise UserError(
        f"{len(indices)} texts gave vectors {embedded.shape}; one of one width is needed"
      )
    if not np.isfinite(embedded).all():
      raise UserError("the encoder gives vectors that are not finite; use a wider type or another")
    vectors[indices] = embedded
    report(len(indices))
  if vectors is None:
    raise ValueError("no texts to embed")
  return vectors


def open_dense(folder: str | pathlib.Path, encoder: str, corpus: Corpus) -> DenseIndex:
  """Opens a finished index.

  Raises:
    UserError: there is none, it is unfinished or damaged, or of another encoder or corpus.
  """
  folder = pathlib.Path(folder)
  if not (folder / _INDEX).exists():
    state = "an unfinished index" if (folder / _BUILD).exists() else "no index"
    raise UserError(f"{folder} holds {state} of vectors; run its build (again)")
  description = _check_identity(folder, {"encoder": encoder, "corpus": corpus.fingerprint})
  keys = ("encoder", "corpus", "passages", "width", "dtype", "shard_rows", "longest")
  try:
    index = DenseIndex(folder, *(description[key] for key in keys))
  except KeyError as error:
    raise UserError(f"{folder / _INDEX} lacks {error}; delete the folder and build anew") from error
  for shard in range(-(-len(index) // index.shard_rows)):
    index._shard(shard)  # raises where it is missing or truncated
  return index


def _check_identity(folder: pathlib.Path, expected: dict[str, Any]) -> dict[str, Any]:
  """The folder's description; UserError where it differs from what is expected."""
  path = folder / _INDEX if (folder / _INDEX).exists() else folder / _BUILD
  try:
    description = json.loads(path.read_text())
    differing = [name for name, value in expected.items() if description.get(name) != value]
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f"{path} is damaged; delete {folder} and build anew") from error
  for name in differing:
    raise UserError(
      f"{folder} is an index of another {name} ({description.get(name)}, wanted "
      f"{expected[name]}); choose another folder, or delete it and build anew"
    )
  return description


def _finalize(folder: pathlib.Path, identity: dict[str, Any], shards: int) -> None:
  """Checks every shard and replaces build.json by index.json."""
  width, max_norm = 0, 0.0
  for number in range(shards):
    rows = min(identity["shard_rows"], identity["passages"] - number * identity["shard_rows"])
    shard = _map_shard(_shard_path(folder, number), identity["dtype"], rows, width)
    width = width or shard.shape[1]
    norms = np.sqrt(np.square(shard.astype(np.float64)).sum(axis=1))
    max_norm = max(max_norm, float(norms.max()))
  _write_json(folder / _INDEX, identity | {"width": width, "longest": max_norm})
  (folder / _BUILD).unlink(missing_ok=True)


def _shard_path(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f"{number:06d}.npy"


def _write_shard(path: pathlib.Path, vectors: np.ndarray, dtype: str) -> None:
  with np.errstate(over="ignore"):  # an overflow raises UserError below
    stored = vectors.astype(VECTOR_DTYPES[dtype])
  if not np.isfinite(stored).all():
    raise UserError(f"the encoder's vectors are too long for {dtype}; store them in float32")
  # .npy has no bfloat16: its bits are stored as uint16.
  bits = stored.view(np.uint16) if dtype == "bfloat16" else stored
  with atomic_file(path) as temporary, temporary.open("wb") as file:
    np.save(file, bits)


def _map_shard(path: pathlib.Path, dtype: str, rows: int, width: int) -> np.ndarray:
  """A shard, memory-mapped; UserError where it is not [rows, width] (width 0: any width)."""
  stored = np.uint16 if dtype == "bfloat16" else VECTOR_DTYPES[dtype]
  try:
    shard = np.load(path, mmap_mode="r")
    if shard.dtype != stored or shard.shape != (rows, width or shard.shape[-1]):
      raise ValueError(f"{shard.dtype} {list(shard.shape)}")
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{path} is missing or damaged ({error}); delete it and build again") from error
  return shard.view(VECTOR_DTYPES[dtype])


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  with atomic_file(path) as temporary:
    temporary.write_text(json.dumps(values, indent=2) + "\n")
