"""A model with what was trained in its weights, as the folder that transformers loads.

LoRA's updates are added to their matrices, full fine-tuning's weights take the place of the old
ones. The folder is that of `save_pretrained`: config.json, safetensors (in shards above 5 GB, with
their index), the tokenizer's files, generation_config.json. Where the base is such a folder, all
but the changed tensors are copied, byte by byte, and a changed one keeps its stored dtype. Neither
torch nor transformers' models are needed.
"""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float

from frozen_jax.backbones import assemble, disassemble, hub
from frozen_jax.backbones.disassemble import Piece
from frozen_jax.backbones.families.hf_config import hf_config
from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.load import open_model, resolve_model_path
from frozen_jax.core import files, paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods.lora import Lora, scaled_updates
from frozen_jax.models.settings import ModelSettings
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.text.tokenizer_files import save_tokenizer

# Of an older export in the same folder: transformers would take these before newer shards.
INDEX = "model.safetensors.index.json"
# It would take an adapter of PEFT in the model's place.
REPLACED = ("model*.safetensors", INDEX, "adapter_config.json", "adapter_model.safetensors")
SHARD_BYTES = 5 * 10**9
_INSTEAD = "--config.export.format=adapter writes it, for frozen_jax.load_adapter"


class _Change(NamedTuple):
  """What training changed: the paths of arrays, and (path, position, old slice) -> new slice."""

  paths: frozenset[str]
  apply: Callable[[str, tuple[int, ...], np.ndarray], np.ndarray]


def check_merged(info: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
  """UserError for an adapter that is no change of the model's weights.

  info, parts: as of `peft.check_peft`.
  """
  if set(parts) not in ({"lora"}, {"lm"}):
    raise UserError(
      f"what {info['method']} trains ({', '.join(parts)}) cannot become weights of the model, as"
      f" LoRA's updates can; {_INSTEAD}"
    )


def check_base(settings: ModelSettings) -> None:
  """UserError for a base that cannot be merged."""
  if settings.quantize:
    raise UserError(
      f"this run is on weights quantised to {settings.quantize} (model.quantize), with which no"
      f" merged model computes; {_INSTEAD}, or train without quantisation"
    )
  if settings.num_layers:
    raise UserError(
      f"this run is on the first {settings.num_layers} layers of its model (model.num_layers);"
      f" train on all of them to merge, or {_INSTEAD}"
    )


def write_merged(folder: pathlib.Path, model: TunedModel, shard_bytes: int = SHARD_BYTES) -> None:
  """Writes the model of a LoRA or a full fine-tuning to an empty folder.

  shard_bytes: the size above which the weights are several files.

  Raises:
    UserError: the base is a GGUF file for which no config.json is written, or the folder cannot be
      written.
  """
  path = resolve_model_path(model.lm.name, False)
  stored = open_model(path)
  leaves = assemble.plan_leaves(stored.config, stored.family, "hf")
  pieces, change = disassemble.pieces_by_tensor(leaves), _change(model)
  with files.user_write_errors(folder):
    if isinstance(stored, GGUFFile):
      _write_small_files(folder, stored, model)
      params = paths.flatten(model.lm.params)
      dtypes = {name: params[own[0].leaf.path].dtype for name, own in pieces.items()}
      make = lambda name: _from_params(params, pieces[name], change)
    else:
      _copy_small_files(path, folder)
      dtypes = {name: stored.read(name, ()).dtype for name in pieces}
      make = lambda name: _from_stored(stored.read(name, ()), pieces[name], change)
    sizes = {
      name: dtypes[name].itemsize * math.prod(own[0].leaf.stored_shape)
      for name, own in pieces.items()
    }
    _write_shards(folder, sizes, make, shard_bytes)


def _change(model: TunedModel) -> _Change:
  if "lm" in model.trained:
    trained = {path: np.asarray(leaf) for path, leaf in paths.flatten(model.trained["lm"]).items()}
    new_slice = lambda path, position, old: trained[path][position]
    return _Change(frozenset(trained), new_slice)
  assert isinstance(model.method, Lora)
  updates = paths.flatten(scaled_updates(model.method.lora, model.trained["lora"]))
  factors = {path: np.asarray(leaf, np.float32) for path, leaf in updates.items()}

  def updated(path: str, position: tuple[int, ...], old: np.ndarray) -> np.ndarray:
    target = path.removeprefix("layers/").removesuffix("/kernel")
    return old + factors[f"{target}/a"][position] @ factors[f"{target}/b"][position]

  targets = {path.rpartition("/")[0] for path in factors}
  return _Change(frozenset(f"layers/{target}/kernel" for target in targets), updated)


def _from_stored(
  tensor: Float[np.ndarray, "..."], pieces: Sequence[Piece], change: _Change
) -> Float[np.ndarray, "..."]:
  """A tensor of the base, itself or with what training changed of it, in its dtype."""
  changed = [piece for piece in pieces if piece.leaf.path in change.paths]
  if not changed:
    return tensor
  new = tensor.astype(np.float32)
  for piece in changed:
    piece.put(new, change.apply(piece.leaf.path, piece.position, piece.take(new)))
  return new.astype(tensor.dtype)


def _from_params(
  params: Mapping[str, Any], pieces: Sequence[Piece], change: _Change
) -> Float[np.ndarray, "..."]:
  """A tensor from the arrays of the frozen tree, by path, with what training changed of them."""
  new = np.empty(pieces[0].leaf.stored_shape, np.float32)
  for leaf, position in pieces:
    value = np.asarray(params[leaf.path])[position].astype(np.float32)
    if leaf.path in change.paths:
      value = change.apply(leaf.path, position, value)
    Piece(leaf, position).put(new, value)
  return new.astype(params[pieces[0].leaf.path].dtype)


def _write_shards(
  folder: pathlib.Path,
  sizes: Mapping[str, int],
  make: Callable[[str], Float[np.ndarray, "..."]],
  shard_bytes: int,
) -> None:
  """Writes tensors, of sizes in bytes, to one file or to several and their index."""
  from huggingface_hub import split_state_dict_into_shards_factory

  split = split_state_dict_into_shards_factory(
    dict(sizes),
    get_storage_size=lambda size: size,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=shard_bytes,
  )
  for file, names in split.filename_to_tensors.items():
    tensors = {name: np.ascontiguousarray(make(name)) for name in names}
    try:
      safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk too
      raise OSError(str(error)) from error
  if split.is_sharded:
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")


def _copy_small_files(base: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies all that a base has besides its weights: config, tokenizer, generation config."""
  names = [file.name for file in base.iterdir() if file.is_file()]
  for name in hub.wanted_files(names):
    if name != INDEX and not name.endswith(".safetensors"):
      shutil.copyfile(base / name, folder / name)


def _write_small_files(folder: pathlib.Path, stored: GGUFFile, model: TunedModel) -> None:
  """Writes config, tokenizer and generation config of a model that is a GGUF file."""
  lm = model.lm
  values = hf_config(stored.family, stored.config)
  if values is None:
    raise UserError(
      f"no config.json is written for the GGUF file {stored.location}, of the type"
      f" {stored.family.hf_name!r} and with its settings; train on the model's folder for"
      f" transformers (model.name), or {_INSTEAD}"
    )
  ids = {"eos_token_id": list(lm.end_ids)} if lm.end_ids else {}
  if lm.tokenizer is not None:
    for name in ("bos_token_id", "pad_token_id"):
      if getattr(lm.tokenizer, name) is not None:
        ids[name] = getattr(lm.tokenizer, name)
    save_tokenizer(lm.tokenizer, folder)
  dtype = str(lm.params["final_norm"]["scale"].dtype)
  files.write_json(folder / "config.json", {**values, "dtype": dtype, **ids})
  files.write_json(folder / "generation_config.json", ids)
