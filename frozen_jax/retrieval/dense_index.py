"""The vectors of a corpus' passages on disk: built so that a killed build goes on, and mapped.

A folder holds index.json, which says what the vectors are of, and .npy files of so many rows each
("shards"), written whole and then moved into place. While it is built, build.json stands in place
of index.json. A vector's row is its passage's position in the corpus.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import whole_file
from frozen_jax.retrieval.corpus import Corpus

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> float32 [n, d]

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

_FORMAT = 1
_INDEX, _BUILD = "index.json", "build.json"


@dataclasses.dataclass(frozen=True)
class DenseIndex:
  """The vectors of all passages, [N, d] in `dtype`.

  encoder, corpus: fingerprints of what they were made with and of. longest: the greatest length of
  a vector (Euclidean).
  """

  folder: pathlib.Path
  encoder: str
  corpus: str
  passages: int
  width: int
  dtype: str
  shard_rows: int
  longest: float
  _mapped: dict[int, np.ndarray] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )  # by the number of a file: mapping anew costs more than reading

  def __len__(self) -> int:
    return self.passages

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The vectors of positions start to stop: a view of the file where one shard holds them."""
    parts = []
    for shard in range(start // self.shard_rows, -(-stop // self.shard_rows)):
      first = shard * self.shard_rows
      parts.append(self._shard(shard)[max(start - first, 0) : stop - first])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def take(self, positions: np.ndarray) -> np.ndarray:
    """The vectors of these positions, [..., d]."""
    flat = positions.ravel()
    taken = np.empty((len(flat), self.width), DTYPES[self.dtype])
    shards = flat // self.shard_rows
    for shard in np.unique(shards):
      here = np.flatnonzero(shards == shard)
      taken[here] = np.take(self._shard(int(shard)), flat[here] - shard * self.shard_rows, axis=0)
    return taken.reshape(*positions.shape, self.width)

  def _shard(self, number: int) -> np.ndarray:
    if number not in self._mapped:
      rows = min(self.shard_rows, self.passages - number * self.shard_rows)
      shard = _read(_place(self.folder, number), self.dtype, rows, self.width)
      self._mapped[number] = shard
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
  """Embeds every passage; what an earlier, killed call has finished is kept.

  Args:
    embed: up to `batch` texts -> float32 [n, d]; they come sorted by length, the longest first.
    encoder: the fingerprint of what embeds (of both, where questions have an encoder of their own).
    dtype: of the vectors on disk, one of `DTYPES`.
    separator: what stands between a passage's title and its text (`" [SEP] "` for DPR's encoder).
    shard_rows: how many passages at most a killed call has to do again.
    progress: whether it shows a bar on standard error.

  Raises:
    UserError: the folder holds an index of something else, or cannot be written; the vectors are
      not finite, or not of one width.
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
  if dtype not in DTYPES:
    raise UserError(f"vectors cannot be stored in {dtype!r}; choose one of {', '.join(DTYPES)}")
  if (folder / _INDEX).exists() or (folder / _BUILD).exists():
    _refuse_other(folder, identity)
  else:
    _write_json(folder / _BUILD, identity)
  if not (folder / _INDEX).exists():
    shards = range(-(-len(corpus) // shard_rows))
    done = [shard for shard in shards if _place(folder, shard).exists()]
    first = min(len(done) * shard_rows, len(corpus))
    hidden = not progress
    with tqdm(total=len(corpus), initial=first, desc="embed", disable=hidden, delay=2) as bar:
      for shard in sorted(set(shards) - set(done)):
        rows = range(shard * shard_rows, min((shard + 1) * shard_rows, len(corpus)))
        texts = [corpus[position].joined(separator) for position in rows]
        vectors = embed_sorted(texts, embed, batch, bar.update)
        _write_shard(_place(folder, shard), vectors, dtype)
    _finish(folder, identity, len(shards))
  return open_dense(folder, encoder, corpus)


def embed_sorted(
  texts: Sequence[str], embed: Embed, batch: int, report: Callable[[int], Any] = lambda count: None
) -> np.ndarray:
  """The texts' vectors float32 [n, d], in their order; embedded in batches of similar length.

  Raises:
    UserError: the vectors are not finite, or not one of the same width for each text.
  """
  order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
  vectors: np.ndarray | None = None
  for first in range(0, len(texts), batch):
    chosen = order[first : first + batch]
    made = np.asarray(embed([texts[at] for at in chosen]), np.float32)
    if vectors is None and made.ndim == 2:
      vectors = np.empty((len(texts), made.shape[1]), np.float32)
    if vectors is None or made.shape != (len(chosen), vectors.shape[1]):
      raise UserError(f"{len(chosen)} texts gave vectors {made.shape}; one of one width is needed")
    if not np.isfinite(made).all():
      raise UserError("the encoder gives vectors that are not finite; use a wider type or another")
    vectors[chosen] = made
    report(len(chosen))
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
  told = _refuse_other(folder, {"encoder": encoder, "corpus": corpus.fingerprint})
  names = [one.name for one in dataclasses.fields(DenseIndex) if one.init and one.name != "folder"]
  try:
    index = DenseIndex(folder, **{name: told[name] for name in names})
  except KeyError as error:
    raise UserError(f"{folder / _INDEX} lacks {error}; delete the folder and build anew") from error
  for shard in range(-(-len(index) // index.shard_rows)):
    index._shard(shard)  # raises where it is missing or cut
  return index


def _refuse_other(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """What the folder says of itself; UserError where that is not what is wanted."""
  path = folder / _INDEX if (folder / _INDEX).exists() else folder / _BUILD
  try:
    told = json.loads(path.read_text())
    differing = [name for name, value in wanted.items() if told.get(name) != value]
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f"{path} is damaged; delete {folder} and build anew") from error
  for name in differing:
    raise UserError(
      f"{folder} is an index of another {name} ({told.get(name)}, wanted {wanted[name]}); choose "
      "another folder, or delete it and build anew"
    )
  return told


def _finish(folder: pathlib.Path, identity: dict[str, Any], shards: int) -> None:
  """Looks at every shard once and turns build.json into index.json."""
  width, longest = 0, 0.0
  for number in range(shards):
    rows = min(identity["shard_rows"], identity["passages"] - number * identity["shard_rows"])
    shard = _read(_place(folder, number), identity["dtype"], rows, width).astype(np.float64)
    width = width or shard.shape[1]
    longest = max(longest, float(np.sqrt(np.square(shard).sum(axis=1)).max()))
  _write_json(folder / _INDEX, identity | {"width": width, "longest": longest})
  (folder / _BUILD).unlink(missing_ok=True)


def _place(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f"{number:06d}.npy"


def _write_shard(path: pathlib.Path, vectors: np.ndarray, dtype: str) -> None:
  with np.errstate(over="ignore"):  # said below, in the user's words
    stored = vectors.astype(DTYPES[dtype])
  if not np.isfinite(stored).all():
    raise UserError(f"the encoder's vectors are too long for {dtype}; store them in float32")
  # .npy has no bfloat16: its bits are kept.
  bits = stored.view(np.uint16) if dtype == "bfloat16" else stored
  with whole_file(path) as beside, beside.open("wb") as file:
    np.save(file, bits)


def _read(path: pathlib.Path, dtype: str, rows: int, width: int) -> np.ndarray:
  """A shard, mapped; UserError where it is not [rows, width] (any width where that is 0)."""
  stored = np.uint16 if dtype == "bfloat16" else DTYPES[dtype]
  try:
    shard = np.load(path, mmap_mode="r")
    if shard.dtype != stored or shard.shape != (rows, width or shard.shape[-1]):
      raise ValueError(f"{shard.dtype} {list(shard.shape)}")
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{path} is missing or damaged ({error}); delete it and build again") from error
  return shard.view(DTYPES[dtype])


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  with whole_file(path) as beside:
    beside.write_text(json.dumps(values, indent=2) + "\n")
