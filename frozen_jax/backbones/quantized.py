"""Frozen matrices at eight or four bits a number: quantising, storing and dequantising them.

Codes and scales are a `qwix.QArray`, from `qwix.quantize`. int8: one scale for each output.
nf4: the sixteen values of NormalFloat (Dettmers et al. 2023, "QLoRA"), one scale for each group of
numbers along the summed axis. int4: sixteen evenly spaced values a group with a scale and an
offset. GGUF's Q4_1 stores the same, so that its blocks can be used unchanged. Scale and offset are
refined by least squares on the codes, as in llama.cpp's quantisation.

XLA packs two 4-bit numbers into a byte, also on CPU, where `nbytes` does not reflect it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from jaxtyping import Array, Float

from frozen_jax.core.dtypes import QUANTIZATION_KINDS
from frozen_jax.core.errors import UserError

MAX_GROUP_SIZE = 32  # numbers that share a scale; the block of GGUF's Q4_0, Q4_1 and Q8_0
_REFINEMENTS = 3  # rounds of least squares: a fourth makes no measurable difference


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["numbers", "offset"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A frozen matrix, or a stack of them, stored as codes * scale + offset.

  numbers: a `qwix.QArray` of the codes, in the matrix's shape, and their scales, whose axes divide
  those of the matrix. offset: an array in the shape of the scales, or None. dtype: in which the
  matrix is used. As in every pytree, transformations may put other leaves in place of arrays.
  """

  numbers: Any
  offset: Any
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.numbers.qvalue.shape

  @property
  def ndim(self) -> int:
    return len(self.shape)


def check_quantization(kind: Any) -> None:
  """Raises UserError unless the kind is one of `QUANTIZATION_KINDS`."""
  if kind not in QUANTIZATION_KINDS:
    kinds = ", ".join(QUANTIZATION_KINDS)
    raise UserError(f"quantize {kind!r} is not supported; choose {kinds} or leave it out")


def summed_axis(path: str) -> int | None:
  """The axis over which products with the parameter at this path sum; None: it is not quantised.

  Products with a token table are those of a tied LM head. Not quantised are norms, biases, the
  small tables of positions and token types, and routers, whose decisions depend on small
  differences.
  """
  if path.endswith("kernel") and "router" not in path:
    return -2
  return -1 if path.endswith("embed/tokens") else None


@functools.partial(jax.jit, static_argnames=("kind", "axis", "dtype"))
def quantize(matrix: Float[Array, "... _ _"], kind: str, axis: int, dtype: Any) -> Quantized:
  """A floating point matrix at fewer bits: [in, out], or [out, in] with `axis` -1, its summed axis.

  In a stack of matrices the axis is -2 or -1, and each matrix has scales of its own. `dtype`: in
  which it will be used. Scales are float16, those of int8 float32.
  """
  axis %= matrix.ndim
  matrix, dtype = matrix.astype(jnp.float32), jnp.dtype(dtype)
  outputs = [a for a in range(matrix.ndim) if a != axis]
  if kind == "int8":
    return Quantized(qwix.quantize(matrix, jnp.int8, channelwise_axes=outputs), None, dtype)
  size = group_size(matrix.shape[axis])
  if kind == "nf4":
    numbers = qwix.quantize(
      matrix, "nf4", channelwise_axes=outputs, tiled_axes={axis: size}, scale_dtype=jnp.float16
    )
    return Quantized(numbers, None, dtype)
  return Quantized(*_quantize_int4(matrix, axis, size), dtype)


def group_size(size: int) -> int:
  """How many numbers share a scale on an axis: the largest divisor of its size in the limit."""
  return max(g for g in range(1, MAX_GROUP_SIZE + 1) if size % g == 0)


def dequantize(kernel: Float[Array, "..."] | Quantized) -> Float[Array, "..."]:
  """The matrix as floating point numbers of its dtype; unchanged if it is not quantised."""
  if not isinstance(kernel, Quantized):
    return kernel
  numbers, offset = kernel.numbers, kernel.offset
  values = qwix.dequantize(numbers.astype(jnp.float32))
  if offset is not None:
    values += _repeated(offset.astype(jnp.float32), values.shape)
  return values.astype(kernel.dtype)


def _quantize_int4(
  matrix: Float[Array, "..."], axis: int, size: int
) -> tuple[qwix.QArray, Float[Array, "..."]]:
  """Codes 0 to 15 with scales, and offsets: from the extremes of each group, then refined."""
  split = (*matrix.shape[:axis], -1, size, *matrix.shape[axis + 1 :])
  groups, inner = matrix.reshape(split), axis + 1
  mean = functools.partial(jnp.mean, axis=inner, keepdims=True)
  low, high = groups.min(inner, keepdims=True), groups.max(inner, keepdims=True)
  scale, low = _rounded_to_float16((high - low) / 15), _rounded_to_float16(low)

  def codes(scale, low):
    # The numbers are scaled already: with this fixed range qwix's own scale is 1.
    scaled = (groups - low) / jnp.where(scale == 0, 1, scale)
    return qwix.quantize(scaled, jnp.uint4, calibration_method="fixed,15.5").qvalue

  for _ in range(_REFINEMENTS):
    steps = codes(scale, low).astype(jnp.float32)
    centred = steps - mean(steps)
    variance = mean(centred**2)
    slope = mean(centred * groups) / jnp.where(variance == 0, 1, variance)
    scale = jnp.where(variance == 0, scale, _rounded_to_float16(slope))
    low = _rounded_to_float16(mean(groups) - scale * mean(steps))
  numbers = codes(scale, low).reshape(matrix.shape)
  scale, low = (a.squeeze(inner).astype(jnp.float16) for a in (scale, low))
  return qwix.QArray(numbers, scale, qtype=numbers.dtype), low


def _rounded_to_float16(a: Float[Array, "..."]) -> Float[Array, "..."]:
  """float32, rounded to what float16 can represent."""
  return a.astype(jnp.float16).astype(jnp.float32)


def _repeated(a: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
  """Each group's number, repeated to the shape of the matrix."""
  for axis, size in enumerate(shape):
    a = jnp.repeat(a, size // a.shape[axis], axis=axis)
  return a
