"""A GGUF file -> config, tensors and metadata, without torch.

The `gguf` package parses the file (mapped into memory, not read) and dequantises every block type.
llama.cpp stores the rows of Q and K of the Llama family with the two rotary halves of each head
interleaved; here that is undone, since our rotation works on halves (as transformers' does). The
experts of a layer lie in one tensor [E, ...]; here each has the name that it had before llama.cpp
stacked them (blk.0.ffn_up_exps.weight is blk.0.ffn_up.0.weight, blk.0.ffn_up.1.weight, ...), so
that files from either time are read, and each expert by itself.
"""

import dataclasses
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np

from frozen_jax.backbones import families, gguf_blocks
from frozen_jax.backbones.assemble import Index
from frozen_jax.backbones.families.table import Family
from frozen_jax.backbones.gguf_blocks import Blocks
from frozen_jax.core.errors import UserError

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_STACKED = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight")

# Settings that only the tensors tell: which products have biases, and how wavelengths are divided.
_BIASES = {
  "qkv_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
  "out_bias": ("blk.0.attn_output.bias",),
  "mlp_bias": ("blk.0.ffn_up.bias",),
}
_DIVISORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Stored bytes: `data` is [..., bytes of a row], or the numbers of types that have no blocks."""

  data: np.ndarray
  tensor_type: gguf.GGMLQuantizationType


class _Reader(gguf.GGUFReader):
  """Its bytes as a plain array: slices of a memmap take three times as long to make, and the
  package makes several for each token of a vocabulary."""

  @property
  def data(self) -> Any:
    return self._plain

  @data.setter
  def data(self, mapped: np.ndarray) -> None:
    self._plain = mapped.view(np.ndarray)


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
    self._tensors: dict[str, _Tensor] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor, shape in _named(reader):
      self._tensors[name], self.shapes[name] = tensor, shape
    self.types = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
    if int(self.value("split.count", 1)) > 1:
      raise UserError(
        f"{path} is one part of a model that was split; join the parts with llama.cpp's "
        "`llama-gguf-split --merge` and load the result"
      )
    self.family: Family = families.family_of(self.value("general.architecture"), "gguf", self.where)
    self._heads: dict[str, int] = {}  # known once the config is
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
    return int(self._tensors[name].data.nbytes)

  def content(self, name: str) -> np.ndarray:
    return np.ascontiguousarray(self._tensors[name].data).reshape(-1).view(np.uint8)

  def _read_config(self) -> Any:
    prefix = f"{self.family.gguf_name}."
    stored = {
      key.removeprefix(prefix): self.value(key) for key in self.metadata if key.startswith(prefix)
    }
    stored["tied"] = _HEAD not in self.shapes
    for setting, names in _BIASES.items():
      stored[setting] = any(name in self.shapes for name in names)
    for name in _DIVISORS:
      if f"{name}.weight" in self.shapes:
        stored[name] = tuple(self.read(f"{name}.weight", (slice(None),)).tolist())
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


def _named(reader: gguf.GGUFReader) -> Iterator[tuple[str, _Tensor, tuple[int, ...]]]:
  """Names, tensors and their row-major shapes; experts one by one."""
  for tensor in reader.tensors:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    stacked = _STACKED.fullmatch(tensor.name)
    if stacked and len(shape) == 3:
      for expert in range(shape[0]):
        part = _Tensor(tensor.data[expert], tensor.tensor_type)
        yield f"{stacked[1]}.{expert}.weight", part, shape[1:]
    else:
      yield tensor.name, _Tensor(tensor.data, tensor.tensor_type), shape


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of the rows of Q or K [heads * C, ...]: pairs back to halves."""
  rows, *rest = values.shape
  pairs = values.reshape(heads, rows // heads // 2, 2, *rest)
  return pairs.swapaxes(1, 2).reshape(rows, *rest)


def _open(path: pathlib.Path) -> gguf.GGUFReader:
  try:
    reader = _Reader(path)
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from None
  # What the reader raises on a file that ends too early or holds nonsense is whatever numpy or
  # Python raises there.
  except (ValueError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "GGMLQuantizationType" in reason:
      raise UserError(
        f"{path} has tensors of a type that the gguf package does not know ({reason}); get a newer "
        "gguf package, or a file in another quantisation"
      ) from None
    raise UserError(
      f"{path} is not a whole GGUF file ({reason}); it was cut short or damaged: get it again"
    ) from None
  if reader.byte_order != "I":
    raise UserError(f"{path} was written for machines of the other byte order; convert it first")
  return reader
