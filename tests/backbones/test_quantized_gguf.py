"""GGUF's blocks as quantised arrays: the same numbers, bit for bit, as the gguf package gives."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from frozen_jax.backbones import gguf_blocks, quantized


def stored_as(kind, shape, seed=0):
  """The bytes of a random matrix as GGUF stores it, and the numbers that they stand for."""
  matrix = np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)
  matrix[0, :32] = 0  # a block without a scale
  matrix[1] *= 1e-6  # and some whose scales are subnormal
  data = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType[kind])
  return data, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("transpose", [False, True])
def test_blocks_stand_for_the_numbers_of_the_gguf_package(kind, transpose):
  data, expected = stored_as(kind, (6, 96))
  blocks = gguf_blocks.unpack_blocks(data, kind, (6, 96))
  codes, scale, offset = (
    jnp.asarray(a.T if transpose else a) if a is not None else None for a in blocks
  )
  numbers = qwix.QArray(codes, scale, qtype=codes.dtype)
  leaf = quantized.Quantized(numbers, offset, jnp.dtype("float32"))
  np.testing.assert_array_equal(quantized.dequantize(leaf), expected.T if transpose else expected)
  assert leaf.numbers.qvalue.dtype == {"Q8_0": jnp.int8, "Q4_0": jnp.int4, "Q4_1": jnp.uint4}[kind]


def test_which_blocks_are_used_unchanged():
  pairs = {
    (k, t)
    for k in quantized.QUANTIZATION_KINDS
    for t in ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "F16")
    if gguf_blocks.fits(k, t)
  }
  assert pairs == {("int8", "Q8_0"), ("int4", "Q4_0"), ("int4", "Q4_1")}
