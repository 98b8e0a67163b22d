"""The key/value cache of a decoder, with which each further token costs a pass of one token.

Keys and values are stored in the layout that the attention of a single token reads, each layer in
arrays of its own: a step moves and slices nothing but the new token.

With `DecoderConfig.cache` = "int8", each slot of a head is stored as 8-bit integers and one scale,
which maps its largest number to 127. Attention multiplies with the integers, which bfloat16
represents exactly, and applies the scales to scores and weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from frozen_jax.backbones import stack
from frozen_jax.core.dtypes import CACHE_KINDS
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import HostOrDevice


class QuantizedKV(NamedTuple):
  """Keys or values of a layer at 8 bits: numbers * scales.

  numbers  int8, in the shape of the keys or values
  scales   float32 [B, K, S]
  """

  numbers: Int8[Array, "B K _ _"]
  scales: Float[Array, "B K S"]


Slots = Float[Array, "B K _ _"] | QuantizedKV  # keys [B, K, C, S] or values [B, K, S, C]


class KVCache(NamedTuple):
  """S slots a row; every array has the rows of the batch on its first axis.

  k             L of [B, K, C, S]  rotated keys; or `QuantizedKV`
  v             L of [B, K, S, C]  values; or `QuantizedKV`
  mask          int32 [B, S]       1 where a slot holds a real token; padding has a slot, too
  position      int32 [B]          the position id of a row's next token
  final_length  int32 [B]          how many real tokens a row may have in the end
  used          int32 [B]          how many slots of a row are filled
  """

  k: tuple[Slots, ...]
  v: tuple[Slots, ...]
  mask: Int[Array, "B S"]
  position: Int[Array, "B"]
  final_length: Int[Array, "B"]
  used: Int[Array, "B"]


def from_prefill(
  k: Float[Array, "L B T K C"],
  v: Float[Array, "L B T K C"],
  mask: Int[Array, "B T"],
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  free_slots: int,
  kind: str = "",
) -> KVCache:
  """Keys and values of T positions -> a cache of T + `free_slots` slots.

  `max_new_tokens`: how many tokens may follow, for all rows or each row. kind: of CACHE_KINDS.
  """
  free = (0, free_slots)
  keys = lambda a: jnp.pad(a.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), free))
  values = lambda a: jnp.pad(a.transpose(0, 2, 1, 3), ((0, 0), (0, 0), free, (0, 0)))
  mask = mask.astype(jnp.int32)
  lengths = mask.sum(axis=1)
  layers = range(len(k))
  return KVCache(
    k=tuple(_stored(stack.map_arrays(lambda a, i=i: keys(a[i]), k), kind, 2) for i in layers),
    v=tuple(_stored(stack.map_arrays(lambda a, i=i: values(a[i]), v), kind, 3) for i in layers),
    mask=jnp.pad(mask, ((0, 0), free)),
    position=lengths,
    final_length=lengths + max_new_tokens,
    used=jnp.full(lengths.shape, mask.shape[1], jnp.int32),
  )


def advance(cache: KVCache) -> tuple[KVCache, Int[Array, "B"]]:
  """The cache with one more real token a row, and the slot of each row that it belongs in.

  The keys and values are unchanged: `write_slot` fills the slots. If no slot is free, the slot is
  the last one, which is overwritten.
  """
  slot = jnp.minimum(cache.used, cache.mask.shape[1] - 1)
  advanced = cache._replace(
    mask=cache.mask.at[jnp.arange(len(slot)), slot].set(1),
    position=cache.position + 1,
    used=cache.used + 1,
  )
  return advanced, slot


def write_slot(
  slots: Slots | Int8[Array, "B K _ _"],
  new: Float[Array, "B 1 K C"] | Int8[Array, "B 1 K C"],
  slot: Int[Array, "B"],
  axis: int,
) -> Slots | Int8[Array, "B K _ _"]:
  """A layer's slots with new keys or values in one slot a row; axis: that of the slots, S."""
  if isinstance(slots, QuantizedKV):
    quantized = _quantize(new, 3)
    scales = slots.scales.at[jnp.arange(len(slot)), :, slot].set(quantized.scales[:, 0])
    return QuantizedKV(write_slot(slots.numbers, quantized.numbers, slot, axis), scales)
  new = new[:, 0].astype(slots.dtype)
  if slots.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
    # To update a slice, XLA's CPU backend would widen all slots; this reads and writes them once.
    is_slot = jnp.arange(slots.shape[axis]) == slot[:, None]
    is_slot = jnp.expand_dims(is_slot, [other for other in (1, 2, 3) if other != axis])
    return jnp.where(is_slot, jnp.expand_dims(new, axis), slots)
  index: list[Any] = [slice(None)] * 4
  index[0], index[axis] = jnp.arange(len(slot)), slot
  return slots.at[tuple(index)].set(new)


def numbers_and_scales(
  slots: Slots, dtype: Any
) -> tuple[Float[Array, "B K _ _"], Float[Array, "B K S"] | None]:
  """The numbers that attention multiplies with, and each slot's scale; None: not quantised.

  Quantised numbers are converted to `dtype`.
  """
  if isinstance(slots, QuantizedKV):
    return slots.numbers.astype(dtype), slots.scales
  return slots, None


def check_cache_kind(kind: Any) -> None:
  """Raises UserError unless the kind is one of `CACHE_KINDS`."""
  if kind not in CACHE_KINDS:
    raise UserError(f"cache {kind!r} is not supported; choose int8 or leave it out")


def _stored(slots: Float[Array, "B K _ _"], kind: str, axis: int) -> Slots:
  """The slots as a cache of this kind stores them; axis: that of a head's numbers C."""
  return _quantize(slots, axis) if kind == "int8" else slots


def _quantize(x: Float[Array, "..."], axis: int) -> QuantizedKV:
  """Numbers at 8 bits, with a scale for each vector along the axis."""
  x = x.astype(jnp.float32)
  scales = jnp.abs(x).max(axis=axis, keepdims=True) / 127
  numbers = jnp.round(x / jnp.where(scales > 0, scales, 1.0))
  return QuantizedKV(numbers.astype(jnp.int8), scales.squeeze(axis))
