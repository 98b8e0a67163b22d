"""`load_encoder`: a frozen encoder by name, with the pooling that its folder specifies.

Folders are those of transformers, or of sentence-transformers, which adds modules.json: the modules
from tokens to one vector per text (`sentence_config`).
"""

import dataclasses
import os
import pathlib
from typing import Any

from jax.sharding import Mesh

from frozen_jax.backbones import assemble, encoder, fingerprint, sentence_config
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.hf_folder import HFFolder
from frozen_jax.backbones.load import conversion, open_headers, resolve_model_path
from frozen_jax.backbones.sentence_config import TextSettings
from frozen_jax.core.errors import UserError
from frozen_jax.text import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A frozen encoder: name, config, parameters, tokenizer, fingerprint, texts.

  params: the tree of `encoder.param_shapes(config)`. tokenizer: a `PreTrainedTokenizerFast`, or
  None where the model has none. fingerprint: 64 hex digits, a hash of the encoder's stored weights
  (without other tensors of the file: heads, a decoder). texts: how texts are put to it.
  """

  name: str
  config: EncoderConfig
  params: dict[str, Any]
  tokenizer: Any | None
  fingerprint: str
  texts: TextSettings = TextSettings()


def load_encoder(
  name: str | os.PathLike[str],
  dtype: str = "float32",
  mesh: Mesh | None = None,
  progress: bool = True,
) -> Encoder:
  """Loads a frozen encoder.

  Args:
    name: a built-in name (`fetch.BUILTIN_MODELS`), a folder with config.json and safetensors
      files, or `hf:owner/name[@revision]`. Of an encoder-decoder only the encoder is read.
    dtype: of the weights in memory, "float32" or "bfloat16".
    mesh: the devices over which the weights are sharded, by `sharding.rules`; None: the default
      device.
    progress: whether progress bars are shown on standard error.

  Raises:
    UserError: no such model, or its files are incomplete, damaged or not understood.
  """
  convert = conversion(dtype)
  path = resolve_model_path(str(name), progress)
  if not path.is_dir():
    raise _no_folder(path)
  stored = HFFolder(path)
  outline, leaves = _outline(str(name), path, stored)
  digests = _digests(stored, leaves, progress)
  params = assemble.load_params(leaves, stored, convert, encoder.PARAM_AXES, mesh, progress)
  identity = fingerprint.combine_digests(digests)
  return dataclasses.replace(outline, params=params, fingerprint=identity)


def stored_encoder_fingerprint(name: str, progress: bool = True) -> str:
  """The fingerprint of an encoder that is not loaded; UserError as `load_encoder`."""
  path = resolve_model_path(name, progress)
  if not path.is_dir():
    raise _no_folder(path)
  stored = HFFolder(path)
  return fingerprint.combine_digests(_digests(stored, plan_encoder(path, stored)[1], progress))


def outline_encoder(name: str) -> Encoder:
  """An encoder without its weights: `params` are their shapes, `fingerprint` is empty.

  Reads config, tokenizer and the headers of the weights; of a model on the hub nothing else is
  downloaded. Raises UserError as `load_encoder`.
  """
  path, stored = open_headers(name)
  if not isinstance(stored, HFFolder):
    raise _no_folder(path)
  return _outline(name, path, stored)[0]


def _digests(stored: HFFolder, leaves: list[assemble.Leaf], progress: bool) -> dict[str, str]:
  """The digests of the tensors that the encoder is made of."""
  tensors = {tensor for leaf in leaves for tensor in leaf.names}
  return fingerprint.tensor_digests(stored, progress, tensors)


def _no_folder(path: pathlib.Path) -> UserError:
  return UserError(f"{path} is no encoder's folder; encoders are only read from folders")


def _outline(
  name: str, path: pathlib.Path, stored: HFFolder
) -> tuple[Encoder, list[assemble.Leaf]]:
  if stored.family.network is not encoder:
    raise UserError(f"{name} is a decoder ({stored.family.hf_name}); load it with load_frozen")
  config, leaves = plan_encoder(path, stored)
  tokenizer = tokenizers.from_folder(path, config.vocab_size)
  texts = sentence_config.text_settings(path)
  if texts.lower_case and tokenizer is not None:
    tokenizer = sentence_config.lower_cased(tokenizer)
  return Encoder(name, config, encoder.param_shapes(config), tokenizer, "", texts), leaves


def plan_encoder(
  folder: pathlib.Path, stored: HFFolder
) -> tuple[EncoderConfig, list[assemble.Leaf]]:
  """The config with the folder's pooling, and the arrays of the encoder.

  Raises:
    UserError: the pooling is not understood, or the stored tensors are not those of this model.
  """
  fields = sentence_config.pooling_fields(folder, stored.config.width)
  config = dataclasses.replace(stored.config, **fields)
  leaves = assemble.plan_leaves(config, stored.family, "hf")
  assemble.check_tensors(leaves, stored, stored.family.derived)
  return config, leaves
