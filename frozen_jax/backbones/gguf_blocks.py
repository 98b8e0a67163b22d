"""GGUF's blocks of 32 numbers as codes and scales, without dequantising them.

The layouts are those of ggml's block_q8_0, block_q4_0 and block_q4_1 (ggml-common.h); codes, and
the float16 scale and offset of a block, are not changed.
"""

from typing import Any, NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np

# What each kind of `quantized.QUANTIZATION_KINDS` can take over.
TYPES: dict[str, tuple[str, ...]] = {"int8": ("Q8_0",), "int4": ("Q4_0", "Q4_1")}


class Blocks(NamedTuple):
  """codes [rows, in] in an integer type; scale and offset (or None) float16 [rows, in / 32]."""

  codes: np.ndarray
  scale: np.ndarray
  offset: np.ndarray | None


def unpack_blocks(data: np.ndarray, gguf_type: str, shape: tuple[int, ...]) -> Blocks:
  """The bytes of a tensor of one of the types in `TYPES`; `shape` is row-major, [rows, in]."""
  count, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[gguf_type]]
  blocks = np.ascontiguousarray(data).reshape(-1, size).view(np.uint8)
  num_halves = 2 if gguf_type == "Q4_1" else 1  # float16 numbers before the codes
  scale, *offset = (
    blocks[:, 2 * i : 2 * i + 2].copy().view(np.float16).reshape(*shape[:-1], -1)
    for i in range(num_halves)
  )
  return Blocks(
    _codes(blocks[:, 2 * num_halves :], gguf_type, count).reshape(shape), scale, *offset or [None]
  )


def block_dtypes(gguf_type: str) -> Blocks:
  """The dtypes of the arrays of `unpack_blocks`."""
  count, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[gguf_type]]
  one = unpack_blocks(np.zeros(size, np.uint8), gguf_type, (1, count))
  return Blocks(*(None if array is None else array.dtype for array in one))


def _codes(packed: np.ndarray, gguf_type: str, count: int) -> np.ndarray:
  if gguf_type == "Q8_0":
    return packed.copy().view(np.int8)
  # Half a block in the lower nibbles, the other half in the upper ones.
  codes = np.empty((len(packed), count), np.int8)
  codes[:, : count // 2] = packed & 15
  codes[:, count // 2 :] = packed >> 4
  return (codes - 8).astype(jnp.int4) if gguf_type == "Q4_0" else codes.astype(jnp.uint4)


def fits(kind: Any, gguf_type: str) -> bool:
  """Whether this kind of quantisation can use blocks of the GGUF type without conversion."""
  return gguf_type in TYPES.get(kind, ())
