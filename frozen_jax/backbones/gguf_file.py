"""A GGUF file -> config, tensors and metadata, without torch.

The `gguf` package parses the file (memory-mapped) and dequantises every block type. llama.cpp
stores the rows of Q and K of the Llama family with the two rotary halves of each head interleaved;
this is undone here, since our rotation works on halves (as transformers' does). Newer files have
the experts of a layer in one tensor [E, ...], older ones a tensor per expert. Here each expert has
the name of the older files (blk.0.ffn_up_exps.weight becomes blk.0.ffn_up.0.weight,
blk.0.ffn_up.1.weight, ...), so that both can be read, each expert by itself.
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
from frozen_jax.backbones.families.table import Family
from frozen_jax.backbones.gguf_blocks import Blocks
from frozen_jax.backbones.stored_tensors import Index
from frozen_jax.core.errors import UserError

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_STACKED = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight")

# Keys of the config that follow from the tensors: biases, and divisors of the rotary wavelengths.
_BIASES = {
  "qkv_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
  "out_bias": ("blk.0.attn_output.bias",),
  "mlp_bias": ("blk.0.ffn_up.bias",),
}
_DIVISORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A stored tensor; data: [..., bytes of a row], or the numbers of types without blocks."""

  data: np.ndarray
  tensor_type: gguf.GGMLQuantizationType


class _Reader(gguf.GGUFReader):
  """A reader whose bytes are a plain array: slicing a memmap takes three times as long, and the
  package slices several times for each token of a vocabulary."""

  @property
  def data(self) -> Any:
    return self._plain

  @data.setter
  def data(self, mapped: np.ndarray) -> None:
    self._plain = mapped.view(np.ndarray)


class GGUFFile:
  """An opened file: `metadata`, `family`, `config`, and its tensors as `StoredTensors`.

  Raises:
    UserError: the file is truncated, damaged, of another type, or has metadata or tensor types
      that are not understood.
  """

  format: families.Format = "gguf"
  reads_slices = False  # a tensor is dequantised as a whole
  float_dtypes = frozenset(
    t.name for t in gguf.GGMLQuantizationType if not re.fullmatch(r"I\d+", t.name)
  )
  duplicates: Mapping[str, str] = {}  # the gguf package refuses a file with duplicates

  def __init__(self, path: pathlib.Path):
    self.location = str(path)
    reader = _open(path)
    self.metadata = dict(reader.fields)
    self._tensors: dict[str, _Tensor] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor, shape in _tensors(reader):
      self._tensors[name], self.shapes[name] = tensor, shape
    self.dtypes = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
    if int(self.value("split.count", 1)) > 1:
      raise UserError(
        f"{path} is one part of a model that was split; join the parts with llama.cpp's "
        "`llama-gguf-split --merge` and load the result"
      )
    self.family: Family = families.family_of(
      self.value("general.architecture"), "gguf", self.location
    )
    self._permuted_heads: dict[str, int] = {}  # known after the config
    self.config = self._read_config()
    self._permuted_heads = self._heads_by_name()

  def value(self, key: str, default: Any = None) -> Any:
    """A metadata value as a Python object."""
    return self.metadata[key].contents() if key in self.metadata else default

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor, dequantised to float32, its rows in the order of transformers."""
    tensor = self._tensors[name]
    try:
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise UserError(
        f"{self.location}: the tensor {name} is stored as {tensor.tensor_type.name}, which the"
        " gguf package cannot dequantise; use a file in another quantisation"
      ) from None
    return self._in_hf_order(name, values.reshape(self.shapes[name]))[index]

  def blocks(self, name: str) -> Blocks:
    """The quantised blocks of a tensor, its rows in the order of transformers."""
    tensor = self._tensors[name]
    blocks = gguf_blocks.unpack_blocks(tensor.data, tensor.tensor_type.name, self.shapes[name])
    return Blocks(*(None if a is None else self._in_hf_order(name, a) for a in blocks))

  def num_bytes(self, name: str) -> int:
    return int(self._tensors[name].data.nbytes)

  def raw_bytes(self, name: str) -> np.ndarray:
    return np.ascontiguousarray(self._tensors[name].data).reshape(-1).view(np.uint8)

  def _read_config(self) -> Any:
    prefix = f"{self.family.gguf_name}."
    values = {
      key.removeprefix(prefix): self.value(key) for key in self.metadata if key.startswith(prefix)
    }
    values["tied"] = _HEAD not in self.shapes
    for key, names in _BIASES.items():
      values[key] = any(name in self.shapes for name in names)
    for name in _DIVISORS:
      if f"{name}.weight" in self.shapes:
        values[name] = tuple(self.read(f"{name}.weight", (slice(None),)).tolist())
    values.setdefault("vocab_size", self.shapes.get(_EMBEDDING, (0,))[0])
    return families.read_config(self.family, "gguf", values, self.location)

  def _in_hf_order(self, name: str, rows: np.ndarray) -> np.ndarray:
    return unpermute(rows, self._permuted_heads[name]) if name in self._permuted_heads else rows

  def _heads_by_name(self) -> dict[str, int]:
    return {
      key.gguf.name.format(layer=layer): getattr(self.config, key.gguf.permuted)
      for key in self.family.keys
      if key.gguf and key.gguf.permuted
      for layer in range(self.config.layers)
    }


def _tensors(reader: gguf.GGUFReader) -> Iterator[tuple[str, _Tensor, tuple[int, ...]]]:
  """Names, tensors and their row-major shapes, with stacked experts split."""
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
  """Undoes llama.cpp's order of the rows of Q or K [heads * C, ...]: from pairs to halves."""
  rows, *rest = values.shape
  pairs = values.reshape(heads, rows // heads // 2, 2, *rest)
  return pairs.swapaxes(1, 2).reshape(rows, *rest)


def _open(path: pathlib.Path) -> gguf.GGUFReader:
  try:
    reader = _Reader(path)
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from None
  # On a truncated or damaged file the package raises whatever numpy or Python raises there.
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
