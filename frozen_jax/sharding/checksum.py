"""A checksum of a tree of arrays in memory, to verify that frozen weights did not change.

Every element's bits are mixed with its position by a bijection of 32-bit words (the finaliser of
MurmurHash3) and the results are summed modulo 2^32, twice with different salts. A sum does not
depend on the order or on who adds what, so each device reduces its own shard and the checksum is
the same for any mesh; a bijection never maps two words to one, so any single flipped bit changes
it.
"""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

SALTS = (0x9E3779B9, 0x7F4A7C15)


def checksum(tree: Any) -> str:
  """64 hex digits for a pytree of arrays: paths, shapes, dtypes and every bit of every element.

  On several hosts every host must call it, and every host gets the same answer.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = [(path, leaf, _leaf_sums(leaf)) for path, leaf in leaves]  # all are dispatched first
  lines = sorted(
    f"{jax.tree_util.keystr(path)} {tuple(leaf.shape)} {leaf.dtype} {np.asarray(sum_).tolist()}"
    for path, leaf, sum_ in sums
  )
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _leaf_sums(leaf: Any) -> jax.Array:
  sharding = getattr(leaf, "sharding", None)
  if isinstance(sharding, NamedSharding):
    return _compiled(NamedSharding(sharding.mesh, PartitionSpec()))(leaf)
  return _compiled(None)(leaf)


@functools.cache
def _compiled(out: NamedSharding | None) -> Any:
  return jax.jit(_sums, out_shardings=out)


def _sums(x: jax.Array) -> jax.Array:
  """uint32 [2]: the two sums of one array."""
  words = _words(x)
  position = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):  # never reshaped: that would move the shards
    position += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.stack([jnp.sum(_mix(words ^ _mix(position + jnp.uint32(s)))) for s in SALTS])


def _words(x: jax.Array) -> jax.Array:
  """The bits of each element as uint32 (64-bit elements: one more axis of length 2)."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(x).astype(jnp.uint32)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    return jnp.stack([_words(x.real), _words(x.imag)], axis=-1)
  bits = (
    jnp.finfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.floating) else (jnp.iinfo(x.dtype).bits)
  )
  kind = {2: jnp.uint2, 4: jnp.uint4, 8: jnp.uint8, 16: jnp.uint16}.get(bits, jnp.uint32)
  return lax.bitcast_convert_type(x, kind).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 (MurmurHash3's finaliser; `^ constant` moves its fixed point 0)."""
  x = x ^ jnp.uint32(0x2545F491)
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
