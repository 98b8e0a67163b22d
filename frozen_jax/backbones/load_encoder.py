"""`load_encoder`: a frozen encoder by name, and how its folder says to pool its states.

Folders are those of transformers, or of sentence-transformers, which adds modules.json: the steps
from tokens to one vector a text (Reimers and Gurevych 2019).
"""

import dataclasses
import pathlib
from typing import Any

from jax.sharding import Mesh

from frozen_jax.backbones import assemble, encoder, fingerprint
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.hf_folder import HFFolder, read_json
from frozen_jax.backbones.load import conversion, find
from frozen_jax.core.errors import UserError
from frozen_jax.text import tokenizer as tokenizers

_POOLER = "pooler/kernel"
_FLAG = "pooling_mode_"
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A frozen encoder: what it is called, its sizes, its weights, its words, and who it is.

  params: the tree of `encoder.param_shapes(config)`. tokenizer: a `PreTrainedTokenizerFast`, or
  None where the model came without one. fingerprint: 64 hex digits that name the stored weights of
  the encoder (of nothing else in its file: heads, a decoder).
  """

  name: str
  config: EncoderConfig
  params: dict[str, Any]
  tokenizer: Any | None
  fingerprint: str


def load_encoder(
  name: str, dtype: str = "float32", mesh: Mesh | None = None, progress: bool = True
) -> Encoder:
  """Loads a frozen encoder.

  Args:
    name: a built-in name (`fetch.BUILT_IN`), a folder with config.json and safetensors files, or
      `hf:owner/name[@revision]`. Of a whole encoder-decoder only the encoder is read.
    dtype: the type of the weights in memory, "float32" or "bfloat16".
    mesh: where the weights lie, by `sharding.rules`; None is the default device.
    progress: whether what takes more than a moment shows a bar on standard error.

  Raises:
    UserError: no such model, or its files are incomplete, damaged or not understood.
  """
  convert = conversion(dtype)
  path = find(str(name), progress)
  if not path.is_dir():
    raise UserError(f"{path} is no encoder's folder; encoders are read from folders alone")
  stored = HFFolder(path)
  if stored.family.network is not encoder:
    raise UserError(f"{name} is a decoder ({stored.family.hf_name}); load it with load_frozen")
  config, leaves = plan(path, stored)
  words = tokenizers.from_folder(path, config.vocab_size)
  own = {tensor for leaf in leaves for tensor in leaf.names}
  digests = fingerprint.digests(stored, progress, own)
  params = assemble.build(leaves, stored, convert, encoder.PARAM_AXES, mesh, progress)
  return Encoder(str(name), config, params, words, fingerprint.combine(digests))


def plan(folder: pathlib.Path, stored: HFFolder) -> tuple[EncoderConfig, list[assemble.Leaf]]:
  """The config with the folder's way of pooling, and the arrays of the encoder.

  Raises:
    UserError: the pooling is not understood, or the stored tensors are not this model's.
  """
  config = dataclasses.replace(stored.config, **_pooling(folder, stored))
  leaves = assemble.plan(config, stored.family, "hf")
  assemble.check(leaves, stored, stored.family.derived)
  return config, leaves


def _pooling(folder: pathlib.Path, stored: HFFolder) -> dict[str, Any]:
  """The config's fields `pooling` and `normalise`: as modules.json says, else the pooler if any.

  Raises:
    UserError: modules.json has a step that is not understood.
  """
  if not (folder / "modules.json").is_file():
    has = any(key.hf.name in stored.shapes for key in stored.family.keys if key.path == _POOLER)
    return {"pooling": "pooler" if has else ""}
  fields: dict[str, Any] = {"pooling": ""}
  for number, step in enumerate(read_json(folder / "modules.json", list)):
    step = step if isinstance(step, dict) else {}
    kind = str(step.get("type")).rpartition(".")[2]
    if number == 0 and kind == "Transformer" and not step.get("path"):
      continue
    if kind == "Pooling" and not fields["pooling"]:
      where = folder / pathlib.PurePath(str(step.get("path"))).name / "config.json"
      fields["pooling"] = _pooling_mode(where, stored.config.width)
    elif kind == "Normalize" and fields["pooling"]:
      fields["normalise"] = True
    else:
      raise UserError(
        f"{folder / 'modules.json'} has a step that frozen_jax does not understand: {step}; remove "
        "the file to load the encoder without pooling"
      )
  return fields


def _pooling_mode(path: pathlib.Path, width: int) -> str:
  """The one way of pooling that the file of a Pooling step turns on."""
  settings = read_json(path)
  on = [
    key.removeprefix(_FLAG) for key, value in settings.items() if key.startswith(_FLAG) and value
  ]
  stated = settings.get("pooling_mode")
  modes = [stated] if isinstance(stated, str) else [_POOLINGS.get(mode, mode) for mode in on]
  size = settings.get("word_embedding_dimension", settings.get("embedding_dimension", width))
  if len(modes) != 1 or modes[0] not in _POOLINGS.values() or size != width:
    raise UserError(
      f"{path} asks for a pooling that frozen_jax does not understand ({settings}); one of "
      f"{', '.join(_POOLINGS.values())} of {width} numbers can be done"
    )
  return modes[0]
