"""`load_decoder`: a frozen decoder by name, from the cache, PyPI, the hub, a folder or a file."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from frozen_jax.backbones import (
  assemble,
  decoder,
  end_ids,
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
from frozen_jax.core.dtypes import WEIGHT_DTYPES
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.reading import local_file, local_folder
from frozen_jax.core.user_path import user_path
from frozen_jax.text import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
  """A frozen decoder: name, config, parameters, tokenizer, fingerprint, end tokens, family.

  params: the tree of `decoder.param_shapes(config)`. tokenizer: a `PreTrainedTokenizerFast` with
  chat template and bos, eos and pad ids, or None where the model has none. fingerprint: 64 hex
  digits, a hash of the stored weights (see `fingerprint`). end_ids: the tokens that end a text.
  family: the model type that transformers knows it by.
  """

  name: str
  config: DecoderConfig
  params: dict[str, Any]
  tokenizer: Any | None
  fingerprint: str
  end_ids: tuple[int, ...] = ()
  family: str = ""


def load_decoder(
  name: str | os.PathLike[str],
  dtype: str = "float32",
  mesh: Mesh | None = None,
  quantize: str | None = None,
  progress: bool = True,
  num_layers: int | None = None,
) -> Decoder:
  """Loads a frozen decoder.

  Args:
    name: a built-in name (`fetch.BUILTIN_MODELS`), a folder with config.json and safetensors
      files, a .gguf file, or `hf:owner/name[@revision]`.
    dtype: of the weights in memory, "float32" or "bfloat16".
    mesh: the devices over which the weights are sharded, by `sharding.rules`; None: the default
      device.
    quantize: "int8", "int4" or "nf4": quantisation of the matrices (see `quantized`); None: none.
    progress: whether progress bars are shown on standard error.
    num_layers: at most so many of the model's layers are loaded, from the first on; None: all.

  Raises:
    UserError: no such model, or its files are incomplete, damaged or not understood.
  """
  convert = conversion(dtype, quantize)
  path = resolve_model_path(str(name), progress)
  stored = open_model(path)
  outline = _outline(str(name), path, stored, num_layers)
  leaves = plan_decoder(stored, outline.config)
  digests = _digests(stored, progress)
  axes = stored.family.network.PARAM_AXES
  if quantize is None:
    params = assemble.load_params(leaves, stored, convert, axes, mesh, progress)
  else:
    params = quantized_reading.build(
      leaves, stored, quantize, jnp.dtype(dtype), axes, mesh, progress
    )
  some = outline.config.layers if outline.config.layers < stored.config.layers else None
  identity = fingerprint.combine_digests(digests, some)
  return dataclasses.replace(outline, params=params, fingerprint=identity)


def stored_fingerprint(name: str, progress: bool = True) -> str:
  """The fingerprint of a decoder that is not loaded; UserError as `load_decoder`."""
  stored = open_model(resolve_model_path(name, progress))
  return fingerprint.combine_digests(_digests(stored, progress))


def outline_decoder(name: str, num_layers: int | None = None) -> Decoder:
  """A decoder without its weights: `params` are their shapes, `fingerprint` is empty.

  Reads config, tokenizer and the headers of the weights; of a model on the hub nothing else is
  downloaded. num_layers and errors as of `load_decoder`.
  """
  path, stored = open_headers(name)
  outline = _outline(name, path, stored, num_layers)
  plan_decoder(stored, outline.config)
  return outline


def _outline(
  name: str, path: AnyPath, stored: GGUFFile | HFFolder, num_layers: int | None
) -> Decoder:
  if stored.family.network is not decoder:
    raise UserError(f"{name} is an encoder ({stored.family.hf_name}); load it with load_encoder")
  config = first_layers(stored.config, num_layers)
  if isinstance(stored, GGUFFile):
    tokenizer = tokenizers.from_gguf(stored.value, config.vocab_size, stored.location)
  else:
    tokenizer = tokenizers.from_folder(path, config.vocab_size)
  file = stored if isinstance(stored, GGUFFile) else path
  ends = end_ids.read(file, config.vocab_size, tokenizer)
  params = decoder.param_shapes(config)
  return Decoder(name, config, params, tokenizer, "", ends, stored.family.hf_name)


def first_layers(config: DecoderConfig, count: int | None) -> DecoderConfig:
  """The config of at most `count` of a decoder's layers, from the first on; None: of all."""
  if count is None or count >= config.layers:
    return config
  return dataclasses.replace(config, layers=count, kinds=config.kinds[:count])


def conversion(dtype: Any, quantize: str | None = None) -> Callable[[str], assemble.Convert]:
  """The conversion of a tensor when it is loaded, by the path of its leaf.

  Raises:
    UserError: no such dtype of weights (WEIGHT_DTYPES) or quantisation.
  """
  if quantize is not None:
    quantized.check_quantization(quantize)
  return functools.partial(quantized_reading.convert, weight_dtype(dtype), quantize)


def weight_dtype(dtype: Any) -> np.dtype:
  """The dtype of weights by its name; UserError unless it is one of WEIGHT_DTYPES."""
  with contextlib.suppress(TypeError):
    resolved = jnp.dtype(dtype)
    if resolved.name in WEIGHT_DTYPES:
      return resolved
  raise UserError(f"dtype {dtype!r} is not supported; choose {' or '.join(WEIGHT_DTYPES)}")


def open_model(path: AnyPath) -> GGUFFile | HFFolder:
  """The model at a path, with its config and the shapes of its tensors; no weights are read."""
  return HFFolder(path) if path.is_dir() else GGUFFile(path)


def open_headers(name: str) -> tuple[pathlib.Path, GGUFFile | HFFolder]:
  """A model's path, and the opened model; of a model on the hub, only headers are downloaded."""
  if name.startswith(hub.PREFIX):
    path = hub.fetch(name, weights=False)
    if not hf_folder.has_weights(path):
      return path, HFFolder(path, hub.fetch_headers(name, revision=path.name))
  else:
    path = resolve_model_path(name, progress=True)
  return path, open_model(path)


def plan_decoder(
  stored: GGUFFile | HFFolder, config: DecoderConfig | None = None
) -> list[assemble.Leaf]:
  """The arrays of a decoder, or of its first layers, and a check of all its stored tensors.

  config: the model's own with as many of its layers as are wanted; None: all.

  Raises:
    UserError: the stored tensors are not those of this model.
  """
  leaves = assemble.plan_leaves(stored.config, stored.family, stored.format)
  redundant = [re.escape(head) for head, _ in _stored_tied_heads(stored)]
  assemble.check_tensors(leaves, stored, [*stored.family.derived, *redundant])
  if config is None or config.layers == stored.config.layers:
    return leaves
  return assemble.plan_leaves(config, stored.family, stored.format)


def _digests(stored: GGUFFile | HFFolder, progress: bool) -> dict[str, str]:
  """The digests of all tensors; UserError if a tied model's head differs from its embeddings."""
  digests = fingerprint.tensor_digests(stored, progress)
  for head, table in _stored_tied_heads(stored):
    if digests[head] != digests[table]:
      raise UserError(
        f"{stored.location} is said to be tied but stores {head} with other values than {table};"
        " set tie_word_embeddings to what the model was trained with"
      )
  return digests


def _stored_tied_heads(stored: GGUFFile | HFFolder) -> list[tuple[str, str]]:
  """The tensor names of head and embeddings, if the model is tied and yet stores both."""
  names = {key.path: getattr(key, stored.format) for key in stored.family.keys}
  head, table = names["head/kernel"].name, names["embed/tokens"].name
  return [(head, table)] if stored.config.tied and head in stored.shapes else []


def resolve_model_path(name: str, progress: bool) -> pathlib.Path:
  """The folder or .gguf file of a model, downloaded if necessary; UserError if there is none.

  Of one on a store it is the copy in the cache.
  """
  if name in fetch.BUILTIN_MODELS:
    return fetch.fetch_builtin(name, progress)
  if name.startswith(hub.PREFIX):
    return hub.fetch(name, progress)
  path = user_path(name)
  if path.is_dir():
    return local_folder(path, hub.wanted_files, progress)
  if path.is_file() and path.suffix.lower() == ".gguf":
    return local_file(path, progress)
  if path.is_file():
    raise UserError(f"{path} is no .gguf file; give a .gguf file or the folder with the model")
  raise UserError(
    f"there is no model {name!r}: it is neither a built-in name"
    f" ({', '.join(fetch.BUILTIN_MODELS)}), a folder with config.json and safetensors files,"
    " a .gguf file (either may be on gs:// or s3://), nor hf:owner/name"
  )
