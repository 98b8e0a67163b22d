"""A GGUF file -> config, tensors and metadata, without torch.

The `gguf` package parses the file (mapped into memory, not read) and dequantises every block type.
llama.cpp stores the rows of Q and K of the Llama family with the two rotary halves of each head
interleaved; here that is undone, since our rotation works on halves (as transformers' does).
"""

import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from frozen_jax.backbones import families, gguf_blocks
from frozen_jax.backbones.assemble import Index
from frozen_jax.backbones.families.table import Family
from frozen_jax.backbones.gguf_blocks import Blocks
from frozen_jax.core.errors import UserError

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class GGUFFile:
  """An opened file: `metadata`, `family`, `config`, and its tensors as `assemble.Stored`.

  Raises:
    UserError: the file is cut short, damaged, of another type, or has settings or tensor types
      that are not understood.
  """

  form: families.Format = "gguf"
  sliced = False  # blocks are dequantised whole
  floats = frozenset(t.name for t in gguf.GGMLQuantizationType if not re.fullmatch(r"I\d+", t.name))
  twice: Mapping[str, str] = {}  # the reader refuses such a file

  def __init__(self, path: pathlib.Path):
    self.where = str(path)
    reader = _open(path)
    self.metadata = dict(reader.fields)
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    self.shapes = {
      name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()
    }
    self.types = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
    if int(self.value("split.count", 1)) > 1:
      raise UserError(
        f"{path} is one part of a model that was split; join the parts with llama.cpp's "
        "`llama-gguf-split --merge` and load the result"
      )
    self.family: Family = families.family_of(self.value("general.architecture"), "gguf", self.where)
    self.config = self._read_config()
    self._heads = self._heads_by_name()

  def value(self, key: str, default: Any = None) -> Any:
    """A metadata value as a Python object."""
    return self.metadata[key].contents() if key in self.metadata else default

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor, dequantised to float32 and with its rows in transformers' order."""
    tensor = self._tensors[name]
    try:
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise UserError(
        f"{self.where}: the tensor {name} is stored as {tensor.tensor_type.name}, which the gguf "
        "package cannot dequantise; use a file in another quantisation"
      ) from None
    return self._ordered(name, values.reshape(self.shapes[name]))[index]

  def blocks(self, name: str) -> Blocks:
    """The blocks of a tensor as they are stored, its rows in transformers' order."""
    tensor = self._tensors[name]
    blocks = gguf_blocks.unpack(tensor.data, tensor.tensor_type.name, self.shapes[name])
    return Blocks(*(None if a is None else self._ordered(name, a) for a in blocks))

  def size(self, name: str) -> int:
    return int(self._tensors[name].n_bytes)

  def content(self, name: str) -> np.ndarray:
    return np.ascontiguousarray(self._tensors[name].data).reshape(-1).view(np.uint8)

  def _read_config(self) -> Any:
    prefix = f"{self.family.gguf_name}."
    stored = {
      key.removeprefix(prefix): self.value(key) for key in self.metadata if key.startswith(prefix)
    }
    stored["tied"] = _HEAD not in self.shapes
    stored.setdefault("vocab_size", self.shapes.get(_EMBEDDING, (0,))[0])
    return families.read_config(self.family, "gguf", stored, self.where)

  def _ordered(self, name: str, rows: np.ndarray) -> np.ndarray:
    return unpermute(rows, self._heads[name]) if name in self._heads else rows

  def _heads_by_name(self) -> dict[str, int]:
    return {
      key.gguf.name.format(layer=layer): getattr(self.config, key.gguf.permuted)
      for key in self.family.keys
      if key.gguf and key.gguf.permuted
      for layer in range(self.config.layers)
    }


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of the rows of Q or K [heads * C, ...]: pairs back to halves."""
  rows, *rest = values.shape
  pairs = values.reshape(heads, rows // heads // 2, 2, *rest)
  return pairs.swapaxes(1, 2).reshape(rows, *rest)


def _open(path: pathlib.Path) -> gguf.GGUFReader:
  try:
    reader = gguf.GGUFReader(path)
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from None
  # What the reader raises on a file that ends too early or holds nonsense is whatever numpy or
  # Python raises there.
  except (ValueError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{path} is not a whole GGUF file ({reason}); it was cut short or damaged: get it again"
    ) from None
  if reader.byte_order != "I":
    raise UserError(f"{path} was written for machines of the other byte order; convert it first")
  return reader
