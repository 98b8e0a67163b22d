"""A folder as `save_pretrained` of transformers writes it -> config and tensors.

It has config.json and one or several safetensors files. Slices of a tensor are read without the
rest of it, so that each process of a large mesh reads only its own shards. Pickled weights are
refused: unpickling can execute arbitrary code.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from frozen_jax.backbones import families
from frozen_jax.backbones.stored_tensors import Index
from frozen_jax.core.errors import UserError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


# Constants that modules keep beside their weights and that older checkpoints store: frequencies,
# causal masks, numbers of positions, a scale, a version. With any prefix, of any family.
_BUFFER = re.compile(
  r"(.*\.)?("
  r"rotary_emb\w*\..+"
  r"|(attn|attention|self_attn|self_attention|crossattention)\.(bias|masked_bias|embed_positions)"
  r"|embeddings\.(position_ids|token_type_ids)"
  r"|embed_positions\._float_tensor"
  r"|embed_tokens\.embed_scale"
  r"|decoder\.version"
  r")"
)

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# File -> tensor -> stored dtype and shape.
Headers = Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]


class HFFolder:
  """An opened folder: `family`, `config`, and its tensors as `StoredTensors`.

  Constants that old checkpoints hold besides weights are left out. A tied model's table has the
  name of the table, also where the file has it under the name of the head.

  headers: those of weights that are not in the folder (its tensors then cannot be read).

  Raises:
    UserError: no config.json, no safetensors file, a file of the index that is missing or
      truncated, or a key of config.json that is not understood.
  """

  format: families.Format = "hf"
  reads_slices = True
  float_dtypes = frozenset(FLOATS)

  def __init__(self, folder: pathlib.Path, headers: Headers | None = None):
    self.location = str(folder)
    values = read_json(folder / "config.json")
    self.family = families.family_of(values.get("model_type"), "hf", f"{folder}/config.json")
    self.config = families.read_config(self.family, "hf", values, f"{folder}/config.json")
    self._bytes: dict[str, np.ndarray] = {}  # the mapped bytes of each tensor
    self.dtypes: dict[str, str] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.duplicates: dict[str, str] = {}
    if headers is None:
      headers = {path.name: self._open(path) for path in _weight_files(folder)}
    for file, tensors in headers.items():
      for name, (dtype, shape) in tensors.items():
        if _BUFFER.fullmatch(name):
          self._bytes.pop(name, None)
        elif name in self.shapes:
          self.duplicates[name] = f"again in {file}"
        else:
          self.dtypes[name], self.shapes[name] = dtype, shape
    self._apply_aliases()
    self._add_prefix()
    if getattr(self.config, "tied", values.get("tie_word_embeddings", True)):
      self._name_tied_table()

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor in its stored dtype, as a view of the file."""
    return self._bytes[name].view(FLOATS[self.dtypes[name]]).reshape(self.shapes[name])[index]

  def num_bytes(self, name: str) -> int:
    digits = re.search(r"\d+", self.dtypes[name])  # F32, BF16, F8_E4M3; BOOL takes a byte
    return math.prod(self.shapes[name]) * int(digits[0] if digits else 8) // 8

  def raw_bytes(self, name: str) -> np.ndarray:
    return self._bytes[name]

  def _apply_aliases(self) -> None:
    """Renames tensors that have an alias to the name in the family's table."""
    for pattern, replacement in self.family.aliases:
      for alias in [name for name in self.shapes if re.fullmatch(pattern, name)]:
        name = re.sub(pattern, replacement, alias)
        if name in self.shapes:
          self.duplicates[alias] = f"also as {name}"
        else:
          self._rename(alias, name)

  def _rename(self, old: str, new: str) -> None:
    for by_name in (self._bytes, self.dtypes, self.shapes):
      if old in by_name:  # headers without weights have no bytes
        by_name[new] = by_name.pop(old)

  def _add_prefix(self) -> None:
    """Renames the tensors of a model without its head to their names in the full model."""
    prefix = self.family.prefix
    names = [key.hf.name for key in self.family.keys if key.hf]
    bare = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    patterns = [re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(name)) for name in bare]
    if not prefix:
      return
    is_full_model = any(name.startswith(prefix) for name in self.shapes)
    for name in [n for n in self.shapes if any(re.fullmatch(p, n) for p in patterns)]:
      if prefix + name in self.shapes:
        self.duplicates[name] = f"also as {prefix}{name}"
      elif not is_full_model:
        self._rename(name, prefix + name)

  def _name_tied_table(self) -> None:
    """Renames the head of a tied model to the table, if the folder has the head alone."""
    names = {key.path: key.hf.name for key in self.family.keys if key.hf}
    table = names["embed/tokens"]
    for head in (names.get("head/kernel"), *self.family.tied_heads):
      if head in self.shapes and table not in self.shapes:
        self._rename(head, table)

  def _open(self, path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
      safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
      reason = str(error).splitlines()[0]
      raise UserError(
        f"{path} is not a whole safetensors file ({reason}); it was cut short or damaged: "
        "get it again"
      ) from None
    # The package has checked the file; its own reader copies a tensor twice, this one never.
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    for name, entry in header.items():
      first, last = entry["data_offsets"]
      self._bytes.setdefault(name, data[start + first : start + last])
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
  """The contents of a JSON file: an object, or a list where `kind` is list.

  Raises:
    UserError: no such file, or it holds something else.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path.parent} has no {path.name}; a model folder needs one") from None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"cannot read {path}: {error}".replace("\n", " ")) from None
  if not isinstance(value, kind):
    what = "object" if kind is dict else kind.__name__
    raise UserError(f"{path} does not hold a JSON {what}; get the file again")
  return value


def has_weights(folder: pathlib.Path) -> bool:
  """Whether all weight files of the folder are present."""
  try:
    return bool(_weight_files(folder))
  except UserError:
    return False


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of the model, in transformers' order of precedence.

  These are model.safetensors, else those of the index, else (which transformers does not read) all
  that the folder has. An index or shards beside model.safetensors are of an earlier save.
  """
  if (folder / "model.safetensors").is_file():
    return [folder / "model.safetensors"]
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
      raise UserError(f"{index} has no weight_map of file names; get the file again")
    files = [folder / pathlib.PurePath(name).name for name in sorted(set(listed.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
      raise UserError(f"{folder} lacks {', '.join(absent)}, which its index lists; get them again")
    return files
  files = sorted(folder.glob("*.safetensors"))
  if not files:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
      raise UserError(
        f"{folder} holds its weights as {pickled[0]}, a pickle, which may run any code when it is "
        "read; convert it with transformers: model.save_pretrained(folder) writes safetensors"
      )
    raise UserError(f"{folder} holds no .safetensors file; a model folder needs at least one")
  return files
