"""The Connector: from the final hidden states of one pass to the input embeddings of the next.

A small causal Transformer (METHODS 4.2; two layers in the paper's reading). What it reads is
normalised and what it writes is scaled to the size of the frozen token embeddings: a frozen LM's
final hidden states are large and its input embeddings small. It has no position encoding of its
own (the hidden states carry positions), so left and right padding agree without further care.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

_NEVER = -1e30  # finite, so that a row of padding alone has a softmax


@dataclasses.dataclass(frozen=True)
class ConnectorOptions:
  """Sizes of a Connector; `zero_output` starts it out as a map to zero (used with `input_skip`)."""

  width: int = 256
  layers: int = 2
  heads: int = 4
  dropout: float = 0.0
  zero_output: bool = True

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f"connector width {self.width} is not divisible by {self.heads} heads")


class ConnectorCache(NamedTuple):
  """Keys and values of what was read so far, for decoding one token at a time.

  Every array has the rows of the batch on its first axis.
  """

  keys: tuple[jax.Array, ...]  # of each layer [B, S, heads, width / heads]
  values: tuple[jax.Array, ...]
  mask: jax.Array  # [B, S]
  used: jax.Array  # int32 [B], slots in use


class _Attention(nnx.Module):
  def __init__(self, options: ConnectorOptions, rngs: nnx.Rngs):
    d, self.heads = options.width, options.heads
    self.qkv = nnx.Linear(d, 3 * d, use_bias=False, rngs=rngs)
    self.out = nnx.Linear(d, d, use_bias=False, rngs=rngs)

  def __call__(self, x, allowed, cached):
    """x [B, T, d], allowed bool [B, T, S] -> result, keys, values.

    `cached`: None or (keys, values, slots [B] to write the new ones at; None: behind all of them).
    """
    rows, length, d = x.shape
    q, k, v = (
      y.reshape(rows, length, self.heads, d // self.heads) for y in jnp.split(self.qkv(x), 3, -1)
    )
    if cached is not None:
      keys, values, slot = cached
      k, v = _joined(keys, k, slot), _joined(values, v, slot)
    scores = jnp.einsum("BTHC,BSHC->BHTS", q, k) * (d // self.heads) ** -0.5
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, _NEVER), -1)
    mixed = jnp.einsum("BHTS,BSHC->BTHC", weights, v).reshape(rows, length, d)
    return self.out(mixed), k, v


def _joined(slots, new, slot):
  if slot is None:
    return jnp.concatenate([slots, new], axis=1)
  put = lambda slots, new, slot: jax.lax.dynamic_update_slice_in_dim(slots, new, slot, 0)
  return jax.vmap(put)(slots, new, slot)


class _Layer(nnx.Module):
  def __init__(self, options: ConnectorOptions, rngs: nnx.Rngs):
    d = options.width
    self.attention_norm = nnx.RMSNorm(d, rngs=rngs)
    self.attention = _Attention(options, rngs)
    self.mlp_norm = nnx.RMSNorm(d, rngs=rngs)
    self.up = nnx.Linear(d, 4 * d, rngs=rngs)
    self.down = nnx.Linear(4 * d, d, rngs=rngs)
    self.dropout = nnx.Dropout(options.dropout)

  def __call__(self, x, allowed, cached, key):
    keys = (None, None) if key is None else jax.random.split(key)
    mixed, k, v = self.attention(self.attention_norm(x), allowed, cached)
    x = x + self.dropout(mixed, deterministic=key is None, rngs=keys[0])
    mixed = self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))
    return x + self.dropout(mixed, deterministic=key is None, rngs=keys[1]), k, v


class Connector(nnx.Module):
  """[B, T, D] -> [B, T, D], position-wise but for causal attention; float32 throughout."""

  def __init__(self, lm_width: int, options: ConnectorOptions, output_scale: float, rngs: nnx.Rngs):
    """`output_scale`: root mean square of the frozen LM's token embeddings."""
    self.options, self.output_scale = options, output_scale
    d = options.width
    self.read = nnx.Linear(lm_width, d, rngs=rngs)
    for index in range(options.layers):
      setattr(self, f"layer_{index}", _Layer(options, rngs))
    self.final_norm = nnx.RMSNorm(d, rngs=rngs)
    start = nnx.initializers.zeros_init() if options.zero_output else None
    kernel = {"kernel_init": start} if start else {}
    self.write = nnx.Linear(d, lm_width, use_bias=False, rngs=rngs, **kernel)

  def __call__(
    self,
    hidden: jax.Array,
    mask: jax.Array,
    key: jax.Array | None = None,
    room: int = 0,
  ) -> tuple[jax.Array, ConnectorCache]:
    """Reads a whole text: hidden [B, T, D], mask [B, T] -> ([B, T, D], cache of T + room slots)."""
    length = hidden.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    allowed = causal & mask[:, None, :].astype(bool)  # [B, T, T]
    written, keys, values = self._run(hidden, allowed, None, key)
    longer = lambda a: jnp.pad(a, [(0, 0), (0, room), *[(0, 0)] * (a.ndim - 2)])
    used = jnp.full(len(hidden), length, jnp.int32)
    kept = (tuple(map(longer, keys)), tuple(map(longer, values)))
    return written, ConnectorCache(*kept, longer(mask), used)

  def step(self, hidden: jax.Array, cache: ConnectorCache) -> tuple[jax.Array, ConnectorCache]:
    """Reads one more position a row: hidden [B, 1, D] -> ([B, 1, D], cache)."""
    mask = cache.mask.at[jnp.arange(len(cache.mask)), cache.used].set(1)
    written, keys, values = self._run(hidden, mask[:, None, :].astype(bool), cache, None)
    return written, ConnectorCache(tuple(keys), tuple(values), mask, cache.used + 1)

  def branch(self, hidden: jax.Array, cache: ConnectorCache, among: jax.Array) -> jax.Array:
    """Reads N more positions a row that continue it in several ways at once: [B, N, D] -> the same.

    Each sees all of its row's cache and those of the new ones that `among` bool [B, N, N] says (the
    last axis is what is seen). The cache needs no free slot and is not made longer.
    """
    old = jnp.broadcast_to(cache.mask[:, None], (*hidden.shape[:2], cache.mask.shape[1]))
    allowed = jnp.concatenate([old.astype(bool), among], axis=2)
    return self._run(hidden, allowed, cache._replace(used=None), None)[0]

  def _run(self, hidden, allowed, cache, key):
    x = hidden.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    x = self.read(x)
    keys, values = [], []
    for index in range(self.options.layers):
      cached = None if cache is None else (cache.keys[index], cache.values[index], cache.used)
      layer_key = None if key is None else jax.random.fold_in(key, index)
      x, k, v = getattr(self, f"layer_{index}")(x, allowed, cached, layer_key)
      keys.append(k)
      values.append(v)
    written = self.write(self.final_norm(x)) * self.output_scale
    return written, keys, values
