"""Frozen matrices at eight or four bits a number: how they are made, held and made whole again.

Codes and scales are a `qwix.QArray`, made by `qwix.quantize`. int8: one scale for each output.
nf4: the sixteen values of NormalFloat (Dettmers et al. 2023, "QLoRA"), one scale for each group of
numbers along the summed axis. int4: sixteen evenly spaced values a group with a scale and an
offset, which is what GGUF's Q4_1 holds, so that such blocks fit in unchanged; the two are refined
by least squares on the codes, in the manner of llama.cpp's quantisation.

XLA packs two 4-bit numbers into a byte, also on CPU (`nbytes` there says otherwise).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from frozen_jax.core.errors import UserError

KINDS = ("int8", "int4", "nf4")
GROUP = 32  # numbers that share a scale; the block of GGUF's Q4_0, Q4_1 and Q8_0
_REFINED = 3  # turns of least squares: a fourth changes nothing that can be measured


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["numbers", "offset"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A frozen matrix, or a stack of them, that stands for codes * scale + offset.

  numbers: the codes in the matrix's shape and their scales, which divide it. offset: shaped as the
  scales, or None for none. dtype: that in which the matrix is used.
  """

  numbers: qwix.QArray
  offset: jax.Array | None
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.numbers.qvalue.shape

  @property
  def ndim(self) -> int:
    return len(self.shape)


def check(kind: Any) -> None:
  """Raises UserError for a kind that is not one of `KINDS`."""
  if kind not in KINDS:
    raise UserError(
      f"quantize {kind!r} is not supported; choose {', '.join(KINDS)} or leave it out"
    )


def summed_axis(path: str) -> int | None:
  """The axis over which the matrix at this path of a tree is summed; None: no matrix of products.

  A token table is summed over as vocabulary projection. Norms, biases and what is small stay as
  they are: tables of positions and segments, and routers, whose choices hang on small differences.
  """
  if path.endswith("kernel") and "router" not in path:
    return -2
  return -1 if path.endswith("embed/tokens") else None


@functools.partial(jax.jit, static_argnames=("kind", "axis", "dtype"))
def quantize(matrix: jax.Array, kind: str, axis: int, dtype: Any) -> Quantized:
  """A floating point matrix [I, O] ([O, I] with `axis` -1, its summed axis) at fewer bits.

  It may be a stack of such: axis -2 or -1 is summed, each of the others has scales of its own.
  `dtype` is that in which it will be used. Scales are float16, those of int8 float32.
  """
  axis %= matrix.ndim
  matrix, dtype = matrix.astype(jnp.float32), jnp.dtype(dtype)
  outputs = [a for a in range(matrix.ndim) if a != axis]
  if kind == "int8":
    return Quantized(qwix.quantize(matrix, jnp.int8, channelwise_axes=outputs), None, dtype)
  size = group(matrix.shape[axis])
  if kind == "nf4":
    numbers = qwix.quantize(
      matrix, "nf4", channelwise_axes=outputs, tiled_axes={axis: size}, scale_dtype=jnp.float16
    )
    return Quantized(numbers, None, dtype)
  return Quantized(*_evenly(matrix, axis, size), dtype)


def keep(codes: jax.Array, scale: jax.Array, offset: jax.Array | None, dtype: Any) -> Quantized:
  """Codes that something else made: integers [I, O], and scales and offsets [I / GROUP, O]."""
  numbers = qwix.QArray(jnp.asarray(codes), jnp.asarray(scale), qtype=codes.dtype)
  return Quantized(numbers, None if offset is None else jnp.asarray(offset), jnp.dtype(dtype))


def group(size: int) -> int:
  """How many numbers share a scale on an axis of this size: at most GROUP, a divisor of it."""
  return max(g for g in range(1, GROUP + 1) if size % g == 0)


def dense(kernel: jax.Array | Quantized) -> jax.Array:
  """The matrix as floating point numbers of its dtype; one that is not quantised as it is."""
  if not isinstance(kernel, Quantized):
    return kernel
  numbers, offset = kernel.numbers, kernel.offset
  values = qwix.dequantize(numbers.astype(jnp.float32))
  if offset is not None:
    values += _repeated(offset.astype(jnp.float32), values.shape)
  return values.astype(kernel.dtype)


def _evenly(matrix: jax.Array, axis: int, size: int) -> tuple[qwix.QArray, jax.Array]:
  """Codes 0 ... 15 with scales, and the offsets: from the extremes of each group, then refined."""
  split = (*matrix.shape[:axis], -1, size, *matrix.shape[axis + 1 :])
  groups, inner = matrix.reshape(split), axis + 1
  mean = functools.partial(jnp.mean, axis=inner, keepdims=True)
  low, high = groups.min(inner, keepdims=True), groups.max(inner, keepdims=True)
  scale, low = _narrow((high - low) / 15), _narrow(low)

  def codes(scale, low):
    # Of numbers that are scaled already: the range is given, and qwix's own scale is 1.
    scaled = (groups - low) / jnp.where(scale == 0, 1, scale)
    return qwix.quantize(scaled, jnp.uint4, calibration_method="fixed,15.5").qvalue

  for _ in range(_REFINED):
    steps = codes(scale, low).astype(jnp.float32)
    centred = steps - mean(steps)
    spread = mean(centred**2)
    slope = mean(centred * groups) / jnp.where(spread == 0, 1, spread)
    scale = jnp.where(spread == 0, scale, _narrow(slope))
    low = _narrow(mean(groups) - scale * mean(steps))
  numbers = codes(scale, low).reshape(matrix.shape)
  scale, low = (a.squeeze(inner).astype(jnp.float16) for a in (scale, low))
  return qwix.QArray(numbers, scale, qtype=numbers.dtype), low


def _narrow(a: jax.Array) -> jax.Array:
  """As float16 will hold it."""
  return a.astype(jnp.float16).astype(jnp.float32)


def _repeated(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Every number for the whole group that it belongs to."""
  for axis, size in enumerate(shape):
    a = jnp.repeat(a, size // a.shape[axis], axis=axis)
  return a
