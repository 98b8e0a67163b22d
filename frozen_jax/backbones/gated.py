"""The gated activation of an MLP, activation(gate) * up, with a derivative that saves little.

The backward pass needs only gate and up in the dtype of the weights. Everything else is recomputed
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
  gate: Float[Array, "*N F"], up: Float[Array, "*N F"], activation: str, dtype: jnp.dtype
) -> Float[Array, "*N F"]:
  """float32 gate and up -> activation(gate) * up, in `dtype`.

  `activation`: a key of ACTIVATIONS; `dtype`: that of the weights which the result is multiplied
  with.
  """
  return (ACTIVATIONS[activation](gate) * up).astype(dtype)


def _forward(gate, up, activation, dtype):
  # Of two shapes: XLA would start two stacks of one shape as copies of one another.
  saved = stack.pack((gate.astype(dtype), up.astype(dtype)[..., None, :]))
  return gated(gate, up, activation, dtype), tuple(checkpoint_name(a, "gated") for a in saved)


def _backward(activation, dtype, saved, cotangent):
  gate, up = stack.unpack(saved, (jnp.dtype(dtype),) * 2)
  gate, up, cotangent = (a.astype(jnp.float32) for a in (gate, up[..., 0, :], cotangent))
  activated, activation_vjp = jax.vjp(ACTIVATIONS[activation], gate)
  return activation_vjp(cotangent * up)[0], cotangent * activated


gated.defvjp(_forward, _backward)
