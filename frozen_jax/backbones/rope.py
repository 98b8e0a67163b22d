"""Rotary positions and the ways in which they are stretched for texts longer than trained on.

Rotary embedding: Su et al. 2021. Stretching: linear (Chen et al. 2023), dynamic NTK (bloc97 2023),
llama3 (Dubey et al. 2024), YaRN (Peng et al. 2023), longrope (Ding et al. 2024). Dynamic NTK and
longrope depend on how long the text is: here on the length of each row alone, so that the rest of
the batch does not matter. A text that is decoded keeps the frequencies of the length that it may
reach, since the keys in its cache are rotated already.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.config import Rope

DEPENDS_ON_LENGTH = ("dynamic", "longrope")
KINDS = ("default", "linear", "llama3", "yarn", *DEPENDS_ON_LENGTH)


def rotation(
  rope: Rope, size: int, positions: Int[Array, "B T"], length: Int[Array, "B"]
) -> tuple[Array, Array]:
  """Positions -> float32 cos and sin, each [B, T, size/2], for heads of which `size` are rotated.

  `length` is how many real positions a row has, or may come to have.
  """
  turns = frequencies(rope, size, length)
  angles = positions[..., None].astype(jnp.float32) * turns[:, None, :]
  return jnp.cos(angles) * rope.magnitude, jnp.sin(angles) * rope.magnitude


def frequencies(rope: Rope, size: int, length: Int[Array, "B"]) -> Float[Array, "B C/2"]:
  """Radians a position of each rotated pair: float32 [B, size/2], or [1, size/2] for all rows."""
  exponents = np.arange(0, size, 2, dtype=np.float32) / size
  plain = 1.0 / np.float32(rope.theta) ** exponents
  if rope.kind == "linear":
    turns = plain / np.float32(rope.factor)
  elif rope.kind == "llama3":
    turns = _llama3(rope, plain)
  elif rope.kind == "yarn":
    turns = _yarn(rope, plain)
  elif rope.kind == "dynamic":
    stretch = rope.factor * jnp.maximum(length, rope.original) / rope.original - rope.factor + 1
    theta = rope.theta * stretch.astype(jnp.float32) ** (size / (size - 2))
    return 1.0 / theta[:, None] ** exponents
  elif rope.kind == "longrope":
    short, long = (plain / np.asarray(by, np.float32) for by in (rope.short, rope.long))
    return jnp.where((length > rope.original)[:, None], long, short)
  else:
    turns = plain
  return jnp.asarray(turns, jnp.float32)[None]


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Long waves are divided by the factor, short ones kept, those between interpolated."""
  waves = rope.original * plain / np.float32(2 * math.pi)  # in one text of the first training
  blend = np.clip((waves - rope.low) / (rope.high - rope.low), 0, 1)
  return (1 - blend) * plain / np.float32(rope.factor) + blend * plain


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Pairs that turn rarely in a text are divided by the factor, a ramp leads to those that do."""
  size = 2 * len(plain)

  def pair(turns: float) -> float:
    """The pair (a real number) that turns so often in one text of the first training."""
    return size * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

  first, last = pair(rope.fast), pair(rope.slow)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  ramp = np.arange(len(plain), dtype=np.float32) - np.float32(first)
  ramp = np.clip(ramp / np.float32((last - first) or 0.001), 0, 1)
  return plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)
