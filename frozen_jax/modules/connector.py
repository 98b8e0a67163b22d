"""The Connector: from the states of one pass to the input of the next.

A small causal Transformer (docs/paper.md, 4.2; two layers in the paper's reading). Its input is
normalised and its output scaled to the size of the stream that it joins: a frozen LM's final
hidden states are large and its input embeddings small. It has no position encoding of its own (the
hidden states carry positions), so left and right padding give the same results.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from frozen_jax.core.masking import MASKED_SCORE
from frozen_jax.modules.position_connectors import normalised


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
  """Sizes of a Connector; `zero_output` starts it out as a map to zero (used with `input_skip`).

  Raises ValueError for a width that the heads do not divide.
  """

  width: int = 256
  layers: int = 2
  heads: int = 4
  dropout: float = 0.0
  zero_output: bool = True

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f"connector width {self.width} is not divisible by {self.heads} heads")


class ConnectorCache(NamedTuple):
  """Keys and values of the positions read so far, for decoding one token at a time.

  Every array has the rows of the batch on its first axis.

  keys, values  of each layer, float32 [B, S, heads, width / heads]
  mask          int [B, S]    1 for real positions
  used          int32 [B]     slots in use; None in a cache that is only read
  """

  keys: tuple[Float[Array, "B S h c"], ...]
  values: tuple[Float[Array, "B S h c"], ...]
  mask: Int[Array, "B S"]
  used: Int[Array, "B"] | None


# Keys and values [B, S, h, c] of a layer, and the slots [B] to write new ones at; None: after all.
_Slots = tuple[jax.Array, jax.Array, jax.Array | None]


class _Attention(nnx.Module):
  def __init__(self, config: ConnectorConfig, rngs: nnx.Rngs):
    d, self.heads = config.width, config.heads
    self.qkv = nnx.Linear(d, 3 * d, use_bias=False, rngs=rngs)
    self.out = nnx.Linear(d, d, use_bias=False, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B T d"], attention_mask: Bool[Array, "#B T S"], cached: _Slots | None
  ) -> tuple[Float[Array, "B T d"], Float[Array, "B S h c"], Float[Array, "B S h c"]]:
    """The result, and the keys and values of all positions that were read."""
    rows, length, d = x.shape
    q, k, v = (
      y.reshape(rows, length, self.heads, d // self.heads) for y in jnp.split(self.qkv(x), 3, -1)
    )
    if cached is not None:
      keys, values, slots = cached
      k, v = _update_cache(keys, k, slots), _update_cache(values, v, slots)
    scores = jnp.einsum("BThc,BShc->BhTS", q, k) * (d // self.heads) ** -0.5
    weights = jax.nn.softmax(jnp.where(attention_mask[:, None], scores, MASKED_SCORE), -1)
    mixed = jnp.einsum("BhTS,BShc->BThc", weights, v).reshape(rows, length, d)
    return self.out(mixed), k, v


def _update_cache(
  cached: Float[Array, "B S h c"], new: Float[Array, "B T h c"], slots: Int[Array, "B"] | None
) -> Float[Array, "B _ h c"]:
  """Keys (or values) with the new ones at the slots, or appended."""
  if slots is None:
    return jnp.concatenate([cached, new], axis=1)
  update = lambda cached, new, slot: jax.lax.dynamic_update_slice_in_dim(cached, new, slot, 0)
  return jax.vmap(update)(cached, new, slots)


class _Layer(nnx.Module):
  def __init__(self, config: ConnectorConfig, rngs: nnx.Rngs):
    d = config.width
    self.attention_norm = nnx.RMSNorm(d, rngs=rngs)
    self.attention = _Attention(config, rngs)
    self.mlp_norm = nnx.RMSNorm(d, rngs=rngs)
    self.up = nnx.Linear(d, 4 * d, rngs=rngs)
    self.down = nnx.Linear(4 * d, d, rngs=rngs)
    self.dropout = nnx.Dropout(config.dropout)

  def __call__(
    self,
    x: Float[Array, "B T d"],
    attention_mask: Bool[Array, "#B T S"],
    cached: _Slots | None,
    key: PRNGKeyArray | None,
  ) -> tuple[Float[Array, "B T d"], Float[Array, "B S h c"], Float[Array, "B S h c"]]:
    keys = (None, None) if key is None else jax.random.split(key)
    mixed, k, v = self.attention(self.attention_norm(x), attention_mask, cached)
    x = x + self.dropout(mixed, deterministic=key is None, rngs=keys[0])
    mixed = self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))
    return x + self.dropout(mixed, deterministic=key is None, rngs=keys[1]), k, v


class Connector(nnx.Module):
  """[B, T, D] -> [B, T, D], position-wise but for causal attention; float32 throughout."""

  def __init__(self, lm_width: int, config: ConnectorConfig, output_scale: float, rngs: nnx.Rngs):
    """`output_scale`: root mean square of the stream that the output joins, as of embeddings."""
    self.config, self.output_scale = config, output_scale
    d = config.width
    self.input_proj = nnx.Linear(lm_width, d, rngs=rngs)
    for index in range(config.layers):  # names: a saved tree has no numbers for keys
      setattr(self, f"layer_{index}", _Layer(config, rngs))
    self.final_norm = nnx.RMSNorm(d, rngs=rngs)
    init = {"kernel_init": nnx.initializers.zeros_init()} if config.zero_output else {}
    self.output_proj = nnx.Linear(d, lm_width, use_bias=False, rngs=rngs, **init)

  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    mask: Int[Array | np.ndarray, "B T"],
    key: PRNGKeyArray | None = None,
    free_slots: int = 0,
  ) -> tuple[Float[Array, "B T D"], ConnectorCache]:
    """Reads whole texts; the cache has T + free_slots slots. `key` drives dropout, None: none."""
    length = hidden.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    attention_mask = causal & mask[:, None, :].astype(bool)  # [B, T, T]
    output, keys, values = self._run(hidden, attention_mask, None, key)
    pad = lambda a: jnp.pad(a, [(0, 0), (0, free_slots), *[(0, 0)] * (a.ndim - 2)])
    used = jnp.full(hidden.shape[0], length, jnp.int32)
    return output, ConnectorCache(tuple(map(pad, keys)), tuple(map(pad, values)), pad(mask), used)

  def step(
    self, hidden: Float[Array, "B 1 D"], cache: ConnectorCache
  ) -> tuple[Float[Array, "B 1 D"], ConnectorCache]:
    """Reads one more position a row; the cache has a free slot for it."""
    mask = cache.mask.at[jnp.arange(cache.mask.shape[0]), cache.used].set(1)
    output, keys, values = self._run(hidden, mask[:, None, :].astype(bool), cache, None)
    return output, ConnectorCache(tuple(keys), tuple(values), mask, cache.used + 1)

  def hidden_after_cache(
    self,
    hidden: Float[Array, "B new D"],
    cache: ConnectorCache,
    attention_mask: Bool[Array, "B new new"],
  ) -> Float[Array, "B new D"]:
    """Reads more positions a row, which continue it in several ways at once.

    Each attends to all of its row's cache and to those of the new ones that `attention_mask` has
    (the last axis is attended to). The cache needs no free slot and is not made longer.
    """
    old = jnp.broadcast_to(cache.mask[:, None], (*hidden.shape[:2], cache.mask.shape[1]))
    attention_mask = jnp.concatenate([old.astype(bool), attention_mask], axis=2)
    return self._run(hidden, attention_mask, cache._replace(used=None), None)[0]

  def _run(
    self,
    hidden: Float[Array, "B T D"],
    attention_mask: Bool[Array, "#B T S"],
    cache: ConnectorCache | None,
    key: PRNGKeyArray | None,
  ) -> tuple[Float[Array, "B T D"], list[Float[Array, "B S h c"]], list[Float[Array, "B S h c"]]]:
    """All layers; the output, and the keys and values of each, those of the cache included."""
    x = self.input_proj(normalised(hidden))
    keys, values = [], []
    for index in range(self.config.layers):
      cached = None if cache is None else (cache.keys[index], cache.values[index], cache.used)
      layer_key = None if key is None else jax.random.fold_in(key, index)
      x, k, v = getattr(self, f"layer_{index}")(x, attention_mask, cached, layer_key)
      keys.append(k)
      values.append(v)
    output = self.output_proj(self.final_norm(x)) * self.output_scale
    return output, keys, values
