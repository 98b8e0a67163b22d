"""The keys and values that a decoder keeps so that a further token costs one single-token pass.

They lie as a single token's attention reads them (keys with their slots last), a layer's in arrays
of their own: nothing is moved or sliced at a step but what is new.

Where `DecoderConfig.cache` says "int8", each slot of a head is kept as 8-bit integers and one
scale, by which its largest number becomes 127. Attention multiplies with the integers, which
bfloat16 holds exactly, and puts the scales to the scores and weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from frozen_jax.backbones import stack
from frozen_jax.core.errors import UserError

KINDS = ("", "int8")  # "": in the dtype of the weights


class Narrow(NamedTuple):
  """Keys or values of a layer at 8 bits: numbers * scales.

  numbers  int8, with the axes of what it stands for
  scales   float32 [B, K, S]
  """

  numbers: Int8[Array, "B K ..."]
  scales: Float[Array, "B K S"]


Slots = jax.Array | Narrow


class KVCache(NamedTuple):
  """S slots a row; every array has the rows of the batch on its first axis.

  k         L of [B, K, C, S]  rotated keys; or `Narrow`
  v         L of [B, K, S, C]  values; or `Narrow`
  mask      int32 [B, S]       1 where a slot holds a real token; padding keeps its slot
  position  int32 [B]          the position that a row's next token takes
  reach     int32 [B]          how many real tokens a row may come to have
  used      int32 [B]          how many slots of a row are filled
  """

  k: tuple[Slots, ...]
  v: tuple[Slots, ...]
  mask: Int[Array, "B S"]
  position: Int[Array, "B"]
  reach: Int[Array, "B"]
  used: Int[Array, "B"]


def from_prefix(
  k: Float[Array, "L B T K C"],
  v: Float[Array, "L B T K C"],
  mask: Int[Array, "B T"],
  new: int | jax.Array,
  room: int,
  kind: str = "",
) -> KVCache:
  """Keys and values of a prefix -> a cache with T + room slots.

  `new`: how many further tokens a row may come to have, for all rows or int32 [B]. kind: of KINDS.
  """
  free = (0, room)
  keys = lambda a: jnp.pad(a.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), free))
  values = lambda a: jnp.pad(a.transpose(0, 2, 1, 3), ((0, 0), (0, 0), free, (0, 0)))
  mask = mask.astype(jnp.int32)
  real = mask.sum(axis=1)
  return KVCache(
    k=tuple(_kept(stack.each(lambda a, i=i: keys(a[i]), k), kind, 2) for i in range(len(k))),
    v=tuple(_kept(stack.each(lambda a, i=i: values(a[i]), v), kind, 3) for i in range(len(v))),
    mask=jnp.pad(mask, ((0, 0), free)),
    position=real,
    reach=real + new,
    used=jnp.full(real.shape, mask.shape[1], jnp.int32),
  )


def lengthened(cache: KVCache) -> tuple[KVCache, Int[Array, "B"]]:
  """The cache with one more real token a row, and the slot of each row that `put` is to fill.

  Past the last slot the newest one is overwritten.
  """
  slot = jnp.minimum(cache.used, cache.mask.shape[1] - 1)
  longer = cache._replace(
    mask=cache.mask.at[jnp.arange(len(slot)), slot].set(1),
    position=cache.position + 1,
    used=cache.used + 1,
  )
  return longer, slot


def put(slots: Slots, new: Float[Array, "B 1 K C"], slot: Int[Array, "B"], axis: int) -> Slots:
  """A layer's slots with new keys or values in one of them; axis: that of the slots, S."""
  if isinstance(slots, Narrow):
    new = _narrow(new, 3)
    scales = slots.scales.at[jnp.arange(len(slot)), :, slot].set(new.scales[:, 0])
    return Narrow(put(slots.numbers, new.numbers, slot, axis), scales)
  new = new[:, 0].astype(slots.dtype)
  if slots.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
    # XLA's CPU backend would widen all slots to write to one; it reads and writes them once so.
    chosen = jnp.arange(slots.shape[axis]) == slot[:, None]
    chosen = jnp.expand_dims(chosen, [at for at in (1, 2, 3) if at != axis])
    return jnp.where(chosen, jnp.expand_dims(new, axis), slots)
  where: list[Any] = [slice(None)] * 4
  where[0], where[axis] = jnp.arange(len(slot)), slot
  return slots.at[tuple(where)].set(new)


def numbers_and_scales(slots: Slots, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
  """What attention multiplies with, in `dtype`, and the scale of each slot [B, K, S]; None: 1."""
  if isinstance(slots, Narrow):
    return slots.numbers.astype(dtype), slots.scales
  return slots, None


def check(kind: Any) -> None:
  """Raises UserError for a kind that is not one of `KINDS`."""
  if kind not in KINDS:
    raise UserError(f"cache {kind!r} is not supported; choose int8 or leave it out")


def _kept(slots: jax.Array, kind: str, axis: int) -> Slots:
  """The slots as the kind has them; axis: that of a head's numbers C."""
  return _narrow(slots, axis) if kind == "int8" else slots


def _narrow(whole: jax.Array, axis: int) -> Narrow:
  """Numbers at 8 bits, with a scale for each vector along the axis."""
  whole = whole.astype(jnp.float32)
  scales = jnp.abs(whole).max(axis=axis, keepdims=True) / 127
  numbers = jnp.round(whole / jnp.where(scales > 0, scales, 1.0))
  return Narrow(numbers.astype(jnp.int8), scales.squeeze(axis))
