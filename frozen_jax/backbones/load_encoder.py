"""`load_encoder`: a frozen encoder by name, with the pooling that its folder specifies.

Folders are those of transformers, or of sentence-transformers, which adds modules.json: the modules
from tokens to one vector per text (Reimers and Gurevych 2019).
"""

import dataclasses
import os
import pathlib
from typing import Any

from jax.sharding import Mesh

from frozen_jax.backbones import assemble, encoder, fingerprint
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.hf_folder import HFFolder, read_json
from frozen_jax.backbones.load import conversion, resolve_model_path
from frozen_jax.core.errors import UserError
from frozen_jax.text import tokenizer as tokenizers

_POOLER = "pooler/kernel"
_FLAG = "pooling_mode_"
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A frozen encoder: name, config, parameters, tokenizer, fingerprint.

  params: the tree of `encoder.param_shapes(config)`. tokenizer: a `PreTrainedTokenizerFast`, or
  None where the model has none. fingerprint: 64 hex digits, a hash of the encoder's stored weights
  (without other tensors of the file: heads, a decoder).
  """

  name: str
  config: EncoderConfig
  params: dict[str, Any]
  tokenizer: Any | None
  fingerprint: str


def load_encoder(
  name: str | os.PathLike[str],
  dtype: str = "float32",
  mesh: Mesh | None = None,
  progress: bool = True,
) -> Encoder:
  """Loads a frozen encoder.

  Args:
    name: a built-in name (`fetch.BUILT_IN`), a folder with config.json and safetensors files, or
      `hf:owner/name[@revision]`. Of an encoder-decoder only the encoder is read.
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
    raise UserError(f"{path} is no encoder's folder; encoders are only read from folders")
  stored = HFFolder(path)
  if stored.family.network is not encoder:
    raise UserError(f"{name} is a decoder ({stored.family.hf_name}); load it with load_frozen")
  config, leaves = plan_encoder(path, stored)
  tokenizer = tokenizers.from_folder(path, config.vocab_size)
  tensors = {tensor for leaf in leaves for tensor in leaf.names}
  digests = fingerprint.tensor_digests(stored, progress, tensors)
  params = assemble.load_params(leaves, stored, convert, encoder.PARAM_AXES, mesh, progress)
  return Encoder(str(name), config, params, tokenizer, fingerprint.combine_digests(digests))


def plan_encoder(
  folder: pathlib.Path, stored: HFFolder
) -> tuple[EncoderConfig, list[assemble.Leaf]]:
  """The config with the folder's pooling, and the arrays of the encoder.

  Raises:
    UserError: the pooling is not understood, or the stored tensors are not those of this model.
  """
  config = dataclasses.replace(stored.config, **_pooling_fields(folder, stored))
  leaves = assemble.plan_leaves(config, stored.family, "hf")
  assemble.check_tensors(leaves, stored, stored.family.derived)
  return config, leaves


def _pooling_fields(folder: pathlib.Path, stored: HFFolder) -> dict[str, Any]:
  """The config's fields `pooling` and `normalise`: from modules.json, else the pooler if any.

  Raises:
    UserError: modules.json has a module that is not understood.
  """
  if not (folder / "modules.json").is_file():
    poolers = [key.hf.name for key in stored.family.keys if key.path == _POOLER]
    return {"pooling": "pooler" if any(name in stored.shapes for name in poolers) else ""}
  fields: dict[str, Any] = {"pooling": ""}
  for number, module in enumerate(read_json(folder / "modules.json", list)):
    module = module if isinstance(module, dict) else {}
    kind = str(module.get("type")).rpartition(".")[2]
    if number == 0 and kind == "Transformer" and not module.get("path"):
      continue
    if kind == "Pooling" and not fields["pooling"]:
      path = folder / pathlib.PurePath(str(module.get("path"))).name / "config.json"
      fields["pooling"] = _pooling_mode(path, stored.config.width)
    elif kind == "Normalize" and fields["pooling"]:
      fields["normalise"] = True
    else:
      raise UserError(
        f"{folder / 'modules.json'} has a step that frozen_jax does not understand: {module};"
        " remove the file to load the encoder without pooling"
      )
  return fields


def _pooling_mode(path: pathlib.Path, width: int) -> str:
  """The one pooling mode that the config of a Pooling module turns on."""
  values = read_json(path)
  flags = [key.removeprefix(_FLAG) for key, on in values.items() if key.startswith(_FLAG) and on]
  mode = values.get("pooling_mode")
  modes = [mode] if isinstance(mode, str) else [_POOLINGS.get(flag, flag) for flag in flags]
  size = values.get("word_embedding_dimension", values.get("embedding_dimension", width))
  if len(modes) != 1 or modes[0] not in _POOLINGS.values() or size != width:
    raise UserError(
      f"{path} asks for a pooling that frozen_jax does not understand ({values}); one of "
      f"{', '.join(_POOLINGS.values())} of {width} numbers can be done"
    )
  return modes[0]
