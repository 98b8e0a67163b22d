"""The key/value cache of a decoder, with which each further token costs a pass of one token.

Keys and values are stored in the layout that the attention of a single token reads. On a CPU each
layer has arrays of its own: a step moves and slices nothing but the new token. Elsewhere the layers
are one array, which a loop over them updates in place.

With `DecoderConfig.cache` = "int8", each slot of a head is stored as 8-bit integers and one scale,
which maps its largest number to 127. Attention multiplies with the integers, which bfloat16
represents exactly, and applies the scales to scores and weights.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from frozen_jax.backbones import stack
from frozen_jax.core.dtypes import CACHE_KINDS
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain, platform_of


class QuantizedKV(NamedTuple):
  """Keys or values of a layer at 8 bits: numbers * scales.

  numbers  int8, in the shape of the keys or values
  scales   float32 [B, K, S]; of all layers [B, L, K, S]
  """

  numbers: Int8[Array, "B *L K _ _"]
  scales: Float[Array, "B *L K S"]


Slots = Float[Array, "B K _ _"] | QuantizedKV  # keys [B, K, C, S] or values [B, K, S, C]
StackedSlots = Float[Array, "B L K _ _"] | QuantizedKV  # those of all layers


class KVCache(NamedTuple):
  """S slots a row; every array has the rows of the batch on its first axis.

  k             L of [B, K, C, S]  rotated keys; or `QuantizedKV`; or one of [B, L, K, C, S]
  v             L of [B, K, S, C]  values; or `QuantizedKV`; or one of [B, L, K, S, C]
  mask          int32 [B, S]       1 where a slot holds a real token; padding has a slot, too
  position      int32 [B]          the position id of a row's next token
  final_length  int32 [B]          how many real tokens a row may have in the end
  used          int32 [B]          how many slots of a row are filled
  """

  k: tuple[Slots, ...] | StackedSlots
  v: tuple[Slots, ...] | StackedSlots
  mask: Int[Array, "B S"]
  position: Int[Array, "B"]
  final_length: Int[Array, "B"]
  used: Int[Array, "B"]

  @property
  def is_stacked(self) -> bool:
    """Whether the layers are one array."""
    return isinstance(self.k, QuantizedKV) or not isinstance(self.k, tuple)


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
  stacked = platform_of(k) != "cpu"
  if not stacked:
    k = tuple(_stored(stack.map_arrays(lambda a, i=i: keys(a[i]), k), kind, 2) for i in layers)
    v = tuple(_stored(stack.map_arrays(lambda a, i=i: values(a[i]), v), kind, 3) for i in layers)
  else:
    of_all = functools.partial(jax.vmap, out_axes=1)
    k, v = _stored(of_all(keys)(k), kind, 3), _stored(of_all(values)(v), kind, 4)
  return KVCache(
    k=_sharded(k, stacked),
    v=_sharded(v, stacked),
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
  is_slot = jnp.arange(cache.mask.shape[1]) == slot[:, None]
  advanced = cache._replace(
    mask=jnp.where(is_slot, 1, cache.mask),
    position=cache.position + 1,
    used=cache.used + 1,
  )
  return advanced, slot


def with_free_slots(cache: KVCache, count: int) -> KVCache:
  """The cache with so many more free slots a row."""

  def longer(array, axis):
    return jnp.pad(array, [(0, count * (at == axis % array.ndim)) for at in range(array.ndim)])

  def grown(slots, axis):
    if isinstance(slots, QuantizedKV):
      return QuantizedKV(longer(slots.numbers, axis), longer(slots.scales, -1))
    return stack.map_arrays(lambda array: longer(array, axis), slots)

  keys, values = (
    grown(one, axis) if cache.is_stacked else tuple(grown(layer, axis) for layer in one)
    for one, axis in ((cache.k, -1), (cache.v, -2))
  )
  return cache._replace(k=keys, v=values, mask=longer(cache.mask, -1))


def write_slot(
  slots: Slots | Int8[Array, "B K _ _"],
  new: Float[Array, "B 1 K C"] | Int8[Array, "B 1 K C"],
  slot: Int[Array, "B"],
  axis: int,
) -> Slots | Int8[Array, "B K _ _"]:
  """A layer's slots with new keys or values in one slot a row; axis: that of the slots, S."""
  if isinstance(slots, QuantizedKV):
    quantized = _quantize(new, 3)
    scales = slots.scales.at[jnp.arange(slot.shape[0]), :, slot].set(quantized.scales[:, 0])
    return QuantizedKV(write_slot(slots.numbers, quantized.numbers, slot, axis), scales)
  new = new[:, 0].astype(slots.dtype)
  if slots.dtype == jnp.bfloat16 and platform_of(slots) == "cpu":
    # To update a slice, XLA's CPU backend would widen all slots; this reads and writes them once.
    is_slot = jnp.arange(slots.shape[axis]) == slot[:, None]
    is_slot = jnp.expand_dims(is_slot, [other for other in (1, 2, 3) if other != axis])
    return jnp.where(is_slot, jnp.expand_dims(new, axis), slots)
  write = lambda slots, new, at: jax.lax.dynamic_update_slice_in_dim(
    slots, jnp.expand_dims(new, axis - 1), at, axis - 1
  )
  return jax.vmap(write)(slots, new, slot)


def write_stacked_slot(
  slots: StackedSlots | Int8[Array, "B L K _ _"],
  new: Float[Array, "B 1 K C"] | Int8[Array, "B 1 K C"],
  slot: Int[Array, "B"],
  axis: int,
  layer: Int[Array, ""],
) -> StackedSlots | Int8[Array, "B L K _ _"]:
  """`write_slot` of one layer of them all; axis: that of the slots within the layer."""
  if isinstance(slots, QuantizedKV):
    quantized = _quantize(new, 3)
    numbers = write_stacked_slot(slots.numbers, quantized.numbers, slot, axis, layer)
    write = lambda scales, new, at: jax.lax.dynamic_update_slice(
      scales, new[None, :, None], (layer, 0, at)
    )
    return QuantizedKV(numbers, jax.vmap(write)(slots.scales, quantized.scales[:, 0], slot))
  start = lambda at: tuple(at if i == axis else 0 for i in (1, 2, 3))
  write = lambda slots, new, at: jax.lax.dynamic_update_slice(
    slots, jnp.expand_dims(new, axis - 1)[None], (layer, *start(at))
  )
  return jax.vmap(write)(slots, new[:, 0].astype(slots.dtype), slot)


def layer_slots(slots: StackedSlots, layer: Int[Array, ""]) -> Slots:
  """The slots of one layer."""
  of_layer = lambda a: jax.lax.dynamic_index_in_dim(a, layer, axis=1, keepdims=False)
  return jax.tree.map(of_layer, slots)


def by_layer(slots: tuple[Slots, ...] | StackedSlots) -> Any:
  """The slots of all layers with the layers on the first axis of each array."""
  if isinstance(slots, tuple) and not isinstance(slots, QuantizedKV):
    return stack.map_arrays(lambda *arrays: jnp.stack(arrays), *slots)
  return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), slots)


def _sharded(slots: Any, stacked: bool) -> Any:
  """The slots with their rows and heads split over the mesh."""
  axes = ("batch", *(None,) * stacked, "kv", None, None)
  return jax.tree.map(lambda a: constrain(a, *axes[: a.ndim]), slots)


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


def _stored(slots: Float[Array, "B *L K _ _"], kind: str, axis: int) -> Slots | StackedSlots:
  """The slots as a cache of this kind stores them; axis: that of a head's numbers C."""
  return _quantize(slots, axis) if kind == "int8" else slots


def _quantize(x: Float[Array, "..."], axis: int) -> QuantizedKV:
  """Numbers at 8 bits, with a scale for each vector along the axis."""
  x = x.astype(jnp.float32)
  scales = jnp.abs(x).max(axis=axis, keepdims=True) / 127
  numbers = jnp.round(x / jnp.where(scales > 0, scales, 1.0))
  return QuantizedKV(numbers.astype(jnp.int8), scales.squeeze(axis))
