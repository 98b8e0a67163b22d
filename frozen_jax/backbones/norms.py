"""The two norms of Transformers, in float32, over the last axis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
  x: Float[Array, "*N width"], scale: Float[Array, "width"], eps: float, offset: float = 0.0
) -> Float[Array, "*N width"]:
  """float32 x divided by its root mean square, times scale + offset (Zhang 2019)."""
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  return x * inverse * (scale.astype(jnp.float32) + offset)


def layer_norm(
  x: Float[Array, "*N width"],
  scale: Float[Array, "width"],
  bias: Float[Array, "width"] | None,
  eps: float,
) -> Float[Array, "*N width"]:
  """float32 x minus its mean, divided by its standard deviation, scaled and shifted (Ba 2016)."""
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
  normed = centred * inverse * scale.astype(jnp.float32)
  return normed if bias is None else normed + bias.astype(jnp.float32)
