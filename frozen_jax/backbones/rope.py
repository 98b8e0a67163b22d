"""Rotary embedding, and its scaling for texts longer than those of pretraining.

Rotary embedding: Su et al. 2021. Scaling: linear (Chen et al. 2023), dynamic NTK (bloc97 2023),
llama3 (Dubey et al. 2024), YaRN (Peng et al. 2023), longrope (Ding et al. 2024). Dynamic NTK and
longrope depend on the length of the text: here on the length of each row, so that the rest of the
batch does not matter. In decoding, the frequencies are those of the final length from the start,
because the keys in the cache are rotated already.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.config import Rope

DEPENDS_ON_LENGTH = ("dynamic", "longrope")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", *DEPENDS_ON_LENGTH)


def rotation(
  rope: Rope, size: int, positions: Int[Array, "B T"], length: Int[Array, "B"]
) -> tuple[Float[Array, "B T {size}//2"], Float[Array, "B T {size}//2"]]:
  """Position ids -> float32 cos and sin for heads of which `size` numbers are rotated.

  `length`: how many real positions a row has in the end.
  """
  radians = frequencies(rope, size, length)
  angles = positions[..., None].astype(jnp.float32) * radians[:, None, :]
  return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def frequencies(rope: Rope, size: int, length: Int[Array, "B"]) -> Float[Array, "#B {size}//2"]:
  """Radians a position of each rotated pair, float32; one row if they are the same for all rows."""
  exponents = np.arange(0, size, 2, dtype=np.float32) / size
  plain = 1.0 / np.float32(rope.theta) ** exponents
  if rope.kind == "linear":
    scaled = plain / np.float32(rope.factor)
  elif rope.kind == "llama3":
    scaled = _llama3(rope, plain)
  elif rope.kind == "yarn":
    scaled = _yarn(rope, plain)
  elif rope.kind == "dynamic":
    original = rope.original_context
    growth = rope.factor * jnp.maximum(length, original) / original - rope.factor + 1
    theta = rope.theta * growth.astype(jnp.float32) ** (size / (size - 2))
    return 1.0 / theta[:, None] ** exponents
  elif rope.kind == "longrope":
    short, long = (plain / np.asarray(f, np.float32) for f in (rope.short_factor, rope.long_factor))
    return jnp.where((length > rope.original_context)[:, None], long, short)
  else:
    scaled = plain
  return jnp.asarray(scaled, jnp.float32)[None]


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Low frequencies are divided by the factor, high ones kept, those between interpolated."""
  waves = rope.original_context * plain / np.float32(2 * math.pi)  # in one context of pretraining
  low, high = rope.low_freq_factor, rope.high_freq_factor
  blend = np.clip((waves - low) / (high - low), 0, 1)
  return (1 - blend) * plain / np.float32(rope.factor) + blend * plain


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Low frequencies are divided by the factor, high ones kept, with a linear ramp between them."""
  size = 2 * len(plain)

  def pair(rotations: float) -> float:
    """The pair (a real number) that has so many rotations in one context of pretraining."""
    ratio = rope.original_context / (rotations * 2 * math.pi)
    return size * math.log(ratio) / (2 * math.log(rope.theta))

  first, last = pair(rope.beta_fast), pair(rope.beta_slow)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  ramp = np.arange(len(plain), dtype=np.float32) - np.float32(first)
  ramp = np.clip(ramp / np.float32((last - first) or 0.001), 0, 1)
  return plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)
