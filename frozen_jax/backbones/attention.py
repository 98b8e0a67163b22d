"""Rotary positions and grouped-query attention; all softmaxes and rotations are float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEGATIVE = -1e30  # finite, so that a query with nothing to look at yields numbers, not NaN


def rotation(positions: Int[Array, "B T"], head_dim: int, theta: float) -> tuple[Array, Array]:
  """Positions [B, T] -> float32 cos and sin, each [B, T, C/2]."""
  wavelengths = theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions[..., None].astype(jnp.float32) / wavelengths
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T H C"], cos_sin: tuple[Array, Array]) -> Float[Array, "B T H C"]:
  """Half-rotation rotary embedding (Su et al. 2021, in the layout of GPT-NeoX and Llama)."""
  cos, sin = (a[:, :, None, :] for a in cos_sin)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal(mask: Int[Array, "B T"] | None, length: int) -> Bool[Array, "B T T"]:
  """Which keys (last axis) each position may look at: real ones that do not come after it."""
  order = jnp.tril(jnp.ones((length, length), bool))[None]
  return order if mask is None else order & (mask[:, None, :] > 0)


def attend(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B S K C"],
  v: Float[Array, "B S K C"],
  visible: Bool[Array, "B T S"],
) -> Float[Array, "B T H C"]:
  """Softmax attention; query head h reads key/value head h // (H / K)."""
  b, t, h, c = q.shape
  grouped = q.reshape(b, t, k.shape[2], h // k.shape[2], c)
  scores = jnp.einsum("btkgc,bskc->bkgts", grouped, k, preferred_element_type=jnp.float32)
  scores = jnp.where(visible[:, None, None], scores * c**-0.5, NEGATIVE)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum("bkgts,bskc->btkgc", weights, v, preferred_element_type=jnp.float32)
  return out.reshape(b, t, h, c).astype(q.dtype)
