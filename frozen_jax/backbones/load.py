"""`load_decoder`: a frozen decoder by name, wherever its weights lie."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from frozen_jax.backbones import (
  assemble,
  decoder,
  fetch,
  fingerprint,
  hf_folder,
  hub,
  quantized,
  quantized_reading,
)
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.hf_folder import HFFolder
from frozen_jax.core.errors import UserError
from frozen_jax.text import tokenizer as tokenizers

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
  """A frozen decoder: what it is called, its sizes, its weights, its words, and who it is.

  params: the tree of `decoder.param_shapes(config)`. tokenizer: a `PreTrainedTokenizerFast` with
  chat template and bos, eos and pad ids, or None where the model came without one. fingerprint:
  64 hex digits that name the stored weights (see `fingerprint`).
  """

  name: str
  config: DecoderConfig
  params: dict[str, Any]
  tokenizer: Any | None
  fingerprint: str


def load_decoder(
  name: str,
  dtype: str = "float32",
  mesh: Mesh | None = None,
  quantize: str | None = None,
  progress: bool = True,
) -> Decoder:
  """Loads a frozen decoder.

  Args:
    name: a built-in name (`fetch.BUILT_IN`), a folder with config.json and safetensors files, a
      .gguf file, or `hf:owner/name[@revision]`.
    dtype: the type of the weights in memory, "float32" or "bfloat16".
    mesh: where the weights lie, by `sharding.rules`; None is the default device.
    quantize: "int8", "int4" or "nf4" keeps the matrices at so many bits (see `quantized`); None
      keeps all numbers in `dtype`.
    progress: whether what takes more than a moment shows a bar on standard error.

  Raises:
    UserError: no such model, or its files are incomplete, damaged or not understood.
  """
  convert = conversion(dtype, quantize)
  path = find(str(name), progress)
  stored = open_model(path)
  if stored.family.network is not decoder:
    raise UserError(f"{name} is an encoder ({stored.family.hf_name}); load it with load_encoder")
  if isinstance(stored, GGUFFile):
    words = tokenizers.from_gguf(stored.value, stored.config.vocab_size, stored.where)
  else:
    words = tokenizers.from_folder(path, stored.config.vocab_size)
  leaves = plan(stored)
  digests = _digests(stored, progress)
  axes = stored.family.network.PARAM_AXES
  if quantize is None:
    params = assemble.build(leaves, stored, convert, axes, mesh, progress)
  else:
    how = (quantize, jnp.dtype(dtype))
    params = quantized_reading.build(leaves, stored, *how, axes, mesh, progress)
  return Decoder(str(name), stored.config, params, words, fingerprint.combine(digests))


def conversion(dtype: Any, quantize: str | None = None) -> Callable[[str], assemble.Convert]:
  """What becomes of a tensor at reading, by the path of its leaf.

  Raises:
    UserError: no such type of weights (DTYPES) or quantisation.
  """
  if quantize is not None:
    quantized.check(quantize)
  with contextlib.suppress(TypeError):
    kind = jnp.dtype(dtype)
    if kind.name in DTYPES:
      return functools.partial(quantized_reading.convert, kind, quantize)
  raise UserError(f"dtype {dtype!r} is not supported; choose {' or '.join(DTYPES)}")


def open_model(path: pathlib.Path) -> GGUFFile | HFFolder:
  """What `find` found, with its config and the shapes of its tensors, of which none is read."""
  return HFFolder(path) if path.is_dir() else GGUFFile(path)


def open_headers(name: str) -> tuple[pathlib.Path, GGUFFile | HFFolder]:
  """A model's path, and it opened; of one of the hub no weights are fetched (nor can be read)."""
  if name.startswith(hub.PREFIX):
    path = hub.fetch(name, weights=False)
    if not hf_folder.has_weights(path):
      return path, HFFolder(path, hub.headers(name, revision=path.name))
  else:
    path = find(name, progress=True)
  return path, open_model(path)


def plan(stored: GGUFFile | HFFolder) -> list[assemble.Leaf]:
  """The arrays of a decoder.

  Raises:
    UserError: the stored tensors are not this model's.
  """
  leaves = assemble.plan(stored.config, stored.family, stored.form)
  spare = [re.escape(head) for head, _ in _second_tables(stored)]
  assemble.check(leaves, stored, [*stored.family.derived, *spare])
  return leaves


def _digests(stored: GGUFFile | HFFolder, progress: bool) -> dict[str, str]:
  """The digests of all tensors; UserError when a tied model stores two different tables."""
  digests = fingerprint.digests(stored, progress)
  for head, table in _second_tables(stored):
    if digests[head] != digests[table]:
      raise UserError(
        f"{stored.where} is said to be tied but stores {head} with other values than {table}; set "
        "tie_word_embeddings to what the model was trained with"
      )
  return digests


def _second_tables(stored: GGUFFile | HFFolder) -> list[tuple[str, str]]:
  """The names of head and table of a tied model, where its file stores the table as both."""
  names = {key.path: getattr(key, stored.form) for key in stored.family.keys}
  head, table = names["head/kernel"].name, names["embed/tokens"].name
  return [(head, table)] if stored.config.tied and head in stored.shapes else []


def find(name: str, progress: bool) -> pathlib.Path:
  """The folder or .gguf file of a model, fetched where it must be; UserError if there is none."""
  if name in fetch.BUILT_IN:
    return fetch.fetch(name, progress)
  if name.startswith(hub.PREFIX):
    return hub.fetch(name, progress)
  path = pathlib.Path(name).expanduser()
  if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
    return path
  if path.is_file():
    raise UserError(f"{path} is no .gguf file; give a .gguf file or the folder with the model")
  raise UserError(
    f"there is no model {name!r}: it is neither a built-in name ({', '.join(fetch.BUILT_IN)}), a "
    "folder with config.json and safetensors files, a .gguf file, nor hf:owner/name"
  )
