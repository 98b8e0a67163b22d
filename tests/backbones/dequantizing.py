"""Quantised weights as floating point numbers."""

import jax

from frozen_jax.backbones.quantized import Quantized, dequantize


def is_quantized(leaf):
  return isinstance(leaf, Quantized)


@jax.jit
def dequantized(params):
  """The same tree, each of its matrices in full; one program, for its operations are many."""
  return jax.tree.map(dequantize, params, is_leaf=is_quantized)
