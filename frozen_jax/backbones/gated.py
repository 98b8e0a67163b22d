"""The inside of a gated MLP, activation(gate) * up, with a derivative that keeps little.

Kept for the backward pass: gate and up, in the dtype of the weights. Everything else is recomputed
from them in one pass over memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from frozen_jax.backbones import stack
from frozen_jax.backbones.activations import ACTIVATIONS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def gated(
  gate: Float[Array, "... F"], up: Float[Array, "... F"], activation: str, dtype: jnp.dtype
) -> Float[Array, "... F"]:
  """float32 gate and up [..., F] -> activation(gate) * up, narrowed to dtype.

  `activation` is a key of ACTIVATIONS; `dtype` that of the weights which the result meets.
  """
  return (ACTIVATIONS[activation](gate) * up).astype(dtype)


def _forward(gate, up, activation, dtype):
  # Not two stacks of one shape: XLA would start the one as a copy of the other.
  kept = stack.pack((gate.astype(dtype), up.astype(dtype)[..., None, :]))
  return gated(gate, up, activation, dtype), tuple(checkpoint_name(a, "gated") for a in kept)


def _backward(activation, dtype, kept, cotangent):
  gate, up = stack.unpack(kept, (jnp.dtype(dtype),) * 2)
  gate, up, cotangent = (a.astype(jnp.float32) for a in (gate, up[..., 0, :], cotangent))
  activated, pull = jax.vjp(ACTIVATIONS[activation], gate)
  return pull(cotangent * up)[0], cotangent * activated


gated.defvjp(_forward, _backward)
