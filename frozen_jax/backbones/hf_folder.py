"""A folder as `save_pretrained` of transformers writes it -> config and tensors.

config.json and one or many safetensors files. Only the parts of a tensor that are asked for are
read, so that a process of a large mesh reads the bytes of its own shards. Pickled weights are
refused: reading a pickle runs whatever code is in it.
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
from frozen_jax.backbones.assemble import Index
from frozen_jax.core.errors import UserError

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# File -> tensor -> stored type and shape.
Headers = Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]


class HFFolder:
  """An opened folder: `family`, `config`, and its tensors as `assemble.Stored`.

  headers: those of its weights where these lie elsewhere, so that none can be read.

  Raises:
    UserError: no config.json, no safetensors file, a file that is listed and not there or cut
      short, a setting that is not understood.
  """

  form: families.Format = "hf"
  sliced = True
  floats = frozenset(_FLOATS)

  def __init__(self, folder: pathlib.Path, headers: Headers | None = None):
    self.where = str(folder)
    settings = read_json(folder / "config.json")
    self.family = families.family_of(settings.get("model_type"), "hf", f"{folder}/config.json")
    self.config = families.read_config(self.family, "hf", settings, f"{folder}/config.json")
    self._bytes: dict[str, np.ndarray] = {}  # the mapped bytes of each tensor
    self.types: dict[str, str] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.twice: dict[str, str] = {}
    if headers is None:
      headers = {path.name: self._open(path) for path in _weight_files(folder)}
    for file, tensors in headers.items():
      for name, (kind, shape) in tensors.items():
        if name in self.shapes:
          self.twice[name] = f"again in {file}"
        else:
          self.types[name], self.shapes[name] = kind, shape
    self._name_usually()
    self._name_whole()

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor in its stored type, as a view of the file."""
    return self._bytes[name].view(_FLOATS[self.types[name]]).reshape(self.shapes[name])[index]

  def size(self, name: str) -> int:
    digits = re.search(r"\d+", self.types[name])  # F32, BF16, F8_E4M3; BOOL takes a byte
    return math.prod(self.shapes[name]) * int(digits[0] if digits else 8) // 8

  def content(self, name: str) -> np.ndarray:
    return self._bytes[name]

  def _name_usually(self) -> None:
    """Gives the tensors the names of the family's table, where they have others that it knows."""
    for pattern, usual in self.family.aliases:
      for name in [name for name in self.shapes if re.fullmatch(pattern, name)]:
        other = re.sub(pattern, usual, name)
        if other in self.shapes:
          self.twice[name] = f"also as {other}"
        else:
          self._rename(name, other)

  def _rename(self, name: str, other: str) -> None:
    for held in (self._bytes, self.types, self.shapes):
      if name in held:  # there are no bytes behind headers alone
        held[other] = held.pop(name)

  def _name_whole(self) -> None:
    """Gives the tensors of a bare model the names that they have in the whole one."""
    prefix = self.family.prefix
    sources = [key.hf.name for key in self.family.keys if key.hf]
    bare = [name.removeprefix(prefix) for name in sources if name.startswith(prefix)]
    patterns = [re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(name)) for name in bare]
    if not prefix:
      return
    named_whole = any(name.startswith(prefix) for name in self.shapes)
    for name in [n for n in self.shapes if any(re.fullmatch(p, n) for p in patterns)]:
      if prefix + name in self.shapes:
        self.twice[name] = f"also as {prefix}{name}"
      elif not named_whole:
        self._rename(name, prefix + name)

  def _open(self, path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
      safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
      reason = str(error).splitlines()[0]
      raise UserError(
        f"{path} is not a whole safetensors file ({reason}); it was cut short or damaged: "
        "get it again"
      ) from None
    # The package has checked the file; its own reading copies a tensor twice, ours not at all.
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    for name, entry in header.items():
      first, last = entry["data_offsets"]
      self._bytes.setdefault(name, data[start + first : start + last])
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
  """What a JSON file holds: an object, or with `kind` list a list.

  Raises:
    UserError: no such file, or nothing of that kind in it.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{path.parent} has no {path.name}; a model folder needs one") from None
  except (OSError, ValueError) as error:
    raise UserError(f"cannot read {path}: {error}".replace("\n", " ")) from None
  if not isinstance(found, kind):
    what = "object" if kind is dict else kind.__name__
    raise UserError(f"{path} does not hold a JSON {what}; get the file again")
  return found


def has_weights(folder: pathlib.Path) -> bool:
  """Whether all weights that the folder should have are there."""
  try:
    return bool(_weight_files(folder))
  except UserError:
    return False


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of the model: as the index lists them, else those that there are."""
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
  if (folder / "model.safetensors").is_file():
    return [folder / "model.safetensors"]
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
