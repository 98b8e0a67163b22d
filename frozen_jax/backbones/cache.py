"""The keys and values that a decoder keeps so that a further token costs one single-token pass.

They lie as a single token's attention reads them (keys with their slots last), a layer's in arrays
of their own: nothing is moved or sliced at a step but what is new.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import stack


class KVCache(NamedTuple):
  """S slots a row; every array has the rows of the batch on its first axis.

  k         L of [B, K, C, S]  rotated keys
  v         L of [B, K, S, C]  values
  mask      int32 [B, S]       1 where a slot holds a real token; padding keeps its slot
  position  int32 [B]          the position that a row's next token takes
  reach     int32 [B]          how many real tokens a row may come to have
  used      int32 [B]          how many slots of a row are filled
  """

  k: tuple[Float[Array, "B K C S"], ...]
  v: tuple[Float[Array, "B K S C"], ...]
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
) -> KVCache:
  """Keys and values of a prefix -> a cache with T + room slots.

  `new`: how many further tokens a row may come to have, for all rows or int32 [B].
  """
  free = (0, room)
  keys = lambda a: jnp.pad(a.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), free))
  values = lambda a: jnp.pad(a.transpose(0, 2, 1, 3), ((0, 0), (0, 0), free, (0, 0)))
  mask = mask.astype(jnp.int32)
  real = mask.sum(axis=1)
  return KVCache(
    k=tuple(stack.each(lambda a, i=i: keys(a[i]), k) for i in range(len(k))),
    v=tuple(stack.each(lambda a, i=i: values(a[i]), v) for i in range(len(v))),
    mask=jnp.pad(mask, ((0, 0), free)),
    position=real,
    reach=real + new,
    used=jnp.full(real.shape, mask.shape[1], jnp.int32),
  )


def append(
  cache: KVCache, k: Sequence[Float[Array, "B 1 K C"]], v: Sequence[Float[Array, "B 1 K C"]]
) -> KVCache:
  """The cache with one more real token a row, given its keys and values in each layer.

  Past the last slot the newest one is overwritten.
  """
  rows = jnp.arange(len(cache.used))
  slot = jnp.minimum(cache.used, cache.mask.shape[1] - 1)

  def put(slots: jax.Array, new: jax.Array, axis: int) -> jax.Array:
    where = [slice(None)] * 4
    where[0], where[axis] = rows, slot
    written = stack.pack(slots).at[tuple(where)].set(stack.pack(new[:, 0].astype(slots.dtype)))
    return stack.unpack(written, slots.dtype)

  return KVCache(
    k=tuple(put(slots, new, 3) for slots, new in zip(cache.k, k, strict=True)),
    v=tuple(put(slots, new, 2) for slots, new in zip(cache.v, v, strict=True)),
    mask=cache.mask.at[rows, slot].set(1),
    position=cache.position + 1,
    reach=cache.reach,
    used=cache.used + 1,
  )
