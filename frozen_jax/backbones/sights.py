"""What the attention of a layer sees: positions, rotations, windows and biases.

The layers of one model are of few kinds (`DecoderConfig.layer_kinds`). What each kind sees is
worked out once a pass, and the scan over the layers picks its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention, rope
from frozen_jax.backbones.config import DecoderConfig


class Sight(NamedTuple):
  """What the attention of a layer sees.

  turns: cos and sin by which its queries and keys are rotated, [B, T, R/2], or None. visible: which
  keys each query may look at. bias: what is added to the scores, or None.
  """

  turns: tuple[Array, Array] | None
  visible: Bool[Array, "B T S"]
  bias: Float[Array, "B H 1 S"] | None


def positions(mask: Int[Array, "B T"]) -> Int[Array, "B T"]:
  """The position of each real token among the real ones of its row; 0 where none came yet."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def of_kinds(
  config: DecoderConfig,
  queries: Int[Array, "B T"],
  keys: Int[Array, "B S"],
  visible: Bool[Array, "B T S"],
  reach: Int[Array, "B"],
) -> tuple[Sight, ...]:
  """What each kind of layer sees, in the order that `kind_numbers` counts them in.

  queries, keys: their positions. visible: which keys a query may look at but for windows. reach:
  how many real tokens a row may come to have.
  """
  bias = None
  if config.positions == "alibi":
    slope = attention.slopes(config.heads)[:, None, None]
    bias = slope * keys[:, None, None, :].astype(jnp.float32)

  kinds = _kinds(config)
  if len(kinds) > 1:  # so that all of them have the same shape
    visible = jnp.broadcast_to(visible, (len(queries), *visible.shape[1:]))

  def of(kind: str) -> Sight:
    near = visible
    if kind == "sliding":
      near = visible & attention.within(queries, keys, config.window)
    if config.positions != "rotary":
      return Sight(None, near, bias)
    turns = config.rope if kind != "sliding" else config.local_rope or config.rope
    cos, sin = rope.rotation(turns, config.rotated, queries, reach)
    if kind == "unrotated":
      cos, sin = jnp.ones_like(cos), jnp.zeros_like(sin)
    return Sight((cos, sin), near, bias)

  return tuple(of(kind) for kind in kinds)


def kind_numbers(config: DecoderConfig) -> list[int]:
  """For each of the L layers, which of the model's kinds of attention it has."""
  kinds = _kinds(config)
  return [kinds.index(kind) for kind in config.layer_kinds]


def pick(seen: tuple[Sight, ...], kind: int | Int[Array, ""]) -> Sight:
  """The sight of one kind."""
  if isinstance(kind, int) or len(seen) == 1:
    return seen[kind if isinstance(kind, int) else 0]
  return jax.tree.map(lambda *each: jax.lax.select_n(kind, *each), *seen)


def _kinds(config: DecoderConfig) -> tuple[str, ...]:
  return tuple(dict.fromkeys(config.layer_kinds))
