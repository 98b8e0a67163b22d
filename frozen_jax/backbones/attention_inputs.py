"""The inputs of attention besides queries, keys and values: masks, biases, rotary cos and sin.

The layers of a model are of few kinds (`DecoderConfig.layer_kinds`). The inputs of each kind are
computed once a pass, and the scan over the layers selects those of each layer's kind.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention, rope
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import HostOrDevice


class AttentionInputs(NamedTuple):
  """Mask, bias and rotation for the attention of one kind of layer.

  cos_sin: cos and sin of the angles by which queries and keys are rotated (`attention.rotate`), or
  None. mask: True where a query may attend to a key; None: attention needs none, as it knows which
  keys those are. bias: added to the scores, or None.
  """

  cos_sin: tuple[Float[Array, "#B T r"], Float[Array, "#B T r"]] | None
  mask: Bool[Array, "#B T S"] | None
  bias: Float[Array, "#B H #T S"] | None


def position_ids(mask: Int[HostOrDevice, "B T"]) -> Int[Array, "B T"]:
  """The number of real tokens before each real token of its row; 0 before the first."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def text_positions(
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  num_before: int = 0,
) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
  """Position ids of texts after `num_before` positions, and how many real ones a row has then."""
  if mask is None:
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    positions = num_before + positions
    length = jnp.full((x.shape[0],), num_before + x.shape[1], jnp.int32)
  else:
    positions = num_before + position_ids(mask)
    length = jnp.asarray(num_before + mask.astype(jnp.int32).sum(axis=1))
  return positions, length


def per_kind(
  config: DecoderConfig,
  query_positions: Int[Array, "B T"],
  key_positions: Int[Array, "B S"],
  mask: Bool[Array, "#B T S"] | None,
  final_length: Int[Array, "B"],
) -> tuple[AttentionInputs, ...]:
  """The attention inputs of each kind of layer, in the order of `kind_ids`.

  mask: True where a query may attend to a key, before windows are applied; None: none is needed.
  final_length: how many real tokens a row may have in the end.
  """
  bias = None
  if config.positions == "alibi":
    slope = attention.alibi_slopes(config.heads)[:, None, None]
    bias = slope * key_positions[:, None, None, :].astype(jnp.float32)

  all_kinds = kinds(config)
  if len(all_kinds) > 1 and mask is not None:  # so that all of them have the same shape
    mask = jnp.broadcast_to(mask, (query_positions.shape[0], *mask.shape[1:]))

  def inputs(kind: str) -> AttentionInputs:
    kind_mask = mask
    if kind == "sliding" and mask is not None:
      kind_mask = mask & attention.window_mask(query_positions, key_positions, config.window)
    if config.positions != "rotary":
      return AttentionInputs(None, kind_mask, bias)
    kind_rope = config.rope if kind != "sliding" else config.local_rope or config.rope
    cos, sin = rope.rotation(kind_rope, config.rotated, query_positions, final_length)
    if kind == "unrotated":
      cos, sin = jnp.ones_like(cos), jnp.zeros_like(sin)
    return AttentionInputs((cos, sin), kind_mask, bias)

  return tuple(inputs(kind) for kind in all_kinds)


def kind_ids(config: DecoderConfig) -> list[int]:
  """For each of the L layers, the index of its kind of attention among those of the model."""
  all_kinds = kinds(config)
  return [all_kinds.index(kind) for kind in config.layer_kinds]


def select(inputs: tuple[AttentionInputs, ...], kind_id: Int[Array, ""]) -> AttentionInputs:
  """The inputs of one kind, whose index may be traced."""
  if len(inputs) == 1:
    return inputs[0]
  return jax.tree.map(lambda *arrays: jax.lax.select_n(kind_id, *arrays), *inputs)


def kinds(config: DecoderConfig) -> tuple[str, ...]:
  """The kinds of layers of a model, each once."""
  return tuple(dict.fromkeys(config.layer_kinds))
