"""Grouped-query attention and its helpers: rotary embedding, masks, ALiBi slopes.

Softmaxes are float32. Attention has its own derivative: it stores queries, keys, values, the result
and one float a query (the log-sum-exp of its scores, as FlashAttention does, Dao et al. 2022) and
recomputes the weights. The backward pass computes the weights transposed, so that no product has to
transpose a [T, S] matrix, which costs more than the product itself. On a CPU, rows are processed in
chunks whose scores fit into the processor's cache, because scores are read and written several
times.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import cache, stack
from frozen_jax.core.masking import MASKED_SCORE
from frozen_jax.core.types import Size
from frozen_jax.sharding.activations import mesh_of, platform_of

# Finite, so that a query whose keys are all masked yields zeros, not NaN: its scores are
# MASKED_SCORE, its maximum is FLOOR, and exp(MASKED_SCORE - FLOOR) is 0.
FLOOR, TINY = -1e20, 1e-30
QUERY_BLOCK, MAX_BLOCKS = 128, 8  # of causal attention; fewer, larger blocks are quicker to compile
SCORES_IN_CPU_CACHE = 2**21


def rotate(
  x: Float[Array, "B T H C"],
  cos_sin: tuple[Float[Array, "#B T r"], Float[Array, "#B T r"]],
  interleaved: bool = False,
) -> Float[Array, "B T H C"]:
  """Rotary embedding: rotates the first 2R numbers of each head, float32; the others stay.

  A pair is (i, i + r), as in GPT-NeoX and Llama, or (2i, 2i + 1) if `interleaved`, as in GPT-J.
  """
  cos, sin = (a[:, :, None, :] for a in cos_sin)
  x = x.astype(jnp.float32)
  rotated, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
  if interleaved:
    first, second = rotated[..., ::2], rotated[..., 1::2]
  else:
    first, second = jnp.split(rotated, 2, axis=-1)
  first, second = first * cos - second * sin, second * cos + first * sin
  if interleaved:
    rotated = jnp.stack([first, second], axis=-1).reshape(rotated.shape)
  else:
    rotated = jnp.concatenate([first, second], axis=-1)
  return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


def alibi_slopes(heads: int) -> Float[np.ndarray, "{heads}"]:
  """ALiBi's slope of each head, float32 [H] (Press et al. 2022)."""
  power_of_two = 2 ** math.floor(math.log2(heads))
  geometric = lambda count: 2.0 ** (-8.0 / count * np.arange(1, count + 1))
  extra = geometric(2 * power_of_two)[::2][: heads - power_of_two]
  return np.concatenate([geometric(power_of_two), extra]).astype(np.float32)


def causal_mask(mask: Int[Array, "B T"] | None, length: Size) -> Bool[Array, "#B T T"]:
  """True where a key (last axis) is real and not after the query; [1, T, T] without a mask."""
  causal = jnp.tril(jnp.ones((length, length), bool))[None]
  return causal if mask is None else causal & (mask[:, None, :] > 0)


def window_mask(
  query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"], window: int
) -> Bool[Array, "B T S"]:
  """True where a key is among the last `window` positions of the query, its own included."""
  return query_positions[:, :, None] - key_positions[:, None, :] < window


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B S K C"],
  v: Float[Array, "B S K C"],
  mask: Bool[Array, "#B T S"],
  bias: Float[Array, "#B H #T S"] | None = None,
  is_causal: bool = False,
  soft_cap: float | None = None,
) -> Float[Array, "B T H C"]:
  """Softmax attention; query head h uses key/value head h // (H / K).

  Scores are q·k / sqrt(C), then `soft_cap` * tanh(score / soft_cap) if there is a cap (Gemma 2),
  plus the bias (float32). `mask` is True where a query may attend to a key; a query without any key
  gives zeros. Products multiply in the operands' dtype and accumulate in float32; the result has
  the dtype of q. `is_causal` promises that the last T keys are those of the queries and that the
  mask is causal among these (see `causal_mask`): long texts are then processed in blocks, and the
  blocks above the diagonal are left out.
  """
  return _attend(q, k, v, mask, bias, is_causal, soft_cap)[0]


def _attend(q, k, v, mask, bias, is_causal, soft_cap):
  """Result [B, T, H, C] and the log-sum-exp of each query's scores, float32 [B, K, J, T]."""
  attend_rows = lambda *arrays: _attend_causal(*arrays, is_causal, soft_cap)
  mixed, log_sum = _map_row_chunks(attend_rows, (q, k, v, mask, bias), q.shape[2] * mask[0].size)
  return _by_position(mixed).astype(q.dtype), log_sum


def _map_row_chunks(fn, arrays, scores_per_row, sum_last=False):
  """fn(*arrays), on a CPU in chunks of rows.

  arrays: with the rows on the first axis (all, or 1 that serves all), or None. sum_last: the last
  result has 1 row, the sum over all rows.
  """
  rows = arrays[0].shape[0]
  # On several devices the rows are sharded, and each chunk would have to be fetched.
  one_cpu = platform_of(arrays[0]) == "cpu" and mesh_of(arrays[0]) is None
  one_cpu = one_cpu and isinstance(rows * scores_per_row, int)  # no sizes of `jax.export`
  chunk_size = _chunk_size(rows, scores_per_row) if one_cpu else rows
  if chunk_size == rows:
    return fn(*arrays)
  chunked = tuple(
    a.reshape(-1, chunk_size, *a.shape[1:]) if a is not None and a.shape[0] == rows else None
    for a in arrays
  )
  on_chunk = lambda chunk: fn(
    *(a if part is None else part for a, part in zip(arrays, chunk, strict=True))
  )
  *results, last = jax.lax.map(on_chunk, chunked)
  joined = lambda a: None if a is None else a.reshape(rows, *a.shape[2:])
  return (*map(joined, results), last.sum(axis=0) if sum_last else joined(last))


def _chunk_size(rows: int, scores_per_row: int) -> int:
  """How many rows one CPU processes at a time; a divisor of `rows`."""
  if rows * scores_per_row <= 2 * SCORES_IN_CPU_CACHE:
    return rows
  fits = lambda n: n == 1 or n * scores_per_row <= SCORES_IN_CPU_CACHE
  return max(n for n in range(1, rows + 1) if rows % n == 0 and fits(n))


def _attend_causal(q, k, v, mask, bias, is_causal, soft_cap):
  """Result [B, K, J, T, C] and log-sum-exp [B, K, J, T], float32; in blocks if `is_causal`."""
  if not is_causal or not isinstance(q.shape[1], int):  # a length that `jax.export` leaves open
    return _attend_block(q, k, v, mask, bias, soft_cap)
  results, before = [], k.shape[1] - q.shape[1]
  for start, end in _blocks(q.shape[1]):
    keys = slice(before + end)
    block = (q[:, start:end], k[:, keys], v[:, keys], mask[:, start:end, keys])
    results.append(_attend_block(*block, _bias_block(bias, slice(start, end), keys), soft_cap))
  return tuple(jnp.concatenate(parts, axis=3) for parts in zip(*results, strict=True))


def _bias_block(bias, queries: slice, keys: slice):
  """The bias of some queries and keys."""
  if bias is None:
    return None
  return bias[:, :, slice(None) if bias.shape[2] == 1 else queries, keys]


def _blocks(length: int) -> list[tuple[int, int]]:
  """Starts and ends of at most MAX_BLOCKS equal parts; only the last may be below QUERY_BLOCK."""
  width = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
  return [(start, min(start + width, length)) for start in range(0, length, width)]


def _attend_block(q, k, v, mask, bias, soft_cap):
  """`_attend_causal` of one block, whose queries and keys are all compared."""
  b, t, _, _ = q.shape
  queries, keys, values = _by_head(q, k.shape[2]), _by_head(k), _by_head(v)
  scores = _product(queries, keys, 3, 3).reshape(b, k.shape[2], -1, t, k.shape[1])  # [B,K,J,T,S]
  weights, top, total = _weights(scores, mask, bias, soft_cap)
  mixed = _product(weights.astype(v.dtype).reshape(*queries.shape[:3], -1), values, 3, 2)
  mixed = mixed.reshape(*total.shape, -1) / total[..., None]
  return mixed, top + jnp.log(total)


def _weights(scores, mask, bias, soft_cap):
  """Scores [B, K, J, T, S] -> exp(score - top), top and the sums of the former [B, K, J, T]."""
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  if bias is not None:
    scores += bias.reshape(bias.shape[0], scores.shape[1], -1, *bias.shape[2:])
  scores = jnp.where(mask[:, None, None], scores, MASKED_SCORE)
  top = jnp.maximum(scores.max(axis=-1), FLOOR)
  weights = jnp.exp(scores - top[..., None])
  return weights, top, jnp.maximum(weights.sum(axis=-1), TINY)


def attend_to_cache(
  q: Float[Array, "B new H C"],
  slots: tuple[cache.Slots, cache.Slots],
  mask: Bool[Array, "B new S"],
  bias: Float[Array, "#B H #new S"] | None = None,
  soft_cap: float | None = None,
  new: tuple[Float[Array, "B new K C"], Float[Array, "B new K C"]] | None = None,
) -> Float[Array, "B new H C"]:
  """`attend` to the keys and values of a cache, which are read in their layout; no derivative.

  slots: keys and values of one layer of a `cache.KVCache`. new: keys and values that are in no
  slot; the last axis of `mask` and bias then has the slots first and these after them.
  """
  b, n, _, c = q.shape
  keys, key_scales = cache.numbers_and_scales(slots[0], q.dtype)
  values, value_scales = cache.numbers_and_scales(slots[1], q.dtype)
  queries = _by_head(q, values.shape[1])
  scores = _product(queries, keys, 3, 2)
  if new is not None:
    scores = jnp.concatenate([scores, _product(queries, _by_head(new[0]), 3, 3)], axis=-1)
  scores = _scaled(scores.reshape(b, values.shape[1], -1, n, scores.shape[-1]), key_scales)
  weights, _, total = _weights(scores, mask, bias, soft_cap)
  weights = _scaled(weights, value_scales).astype(q.dtype).reshape(*queries.shape[:3], -1)
  num_slots = values.shape[2]
  mixed = _product(weights[..., :num_slots], values, 3, 2)
  if new is not None:
    mixed += _product(weights[..., num_slots:], _by_head(new[1]), 3, 2)
  return _by_position(mixed.reshape(*total.shape, c) / total[..., None]).astype(q.dtype)


def _scaled(
  x: Float[Array, "B K J new S"], scales: Float[Array, "B K slots"] | None
) -> Float[Array, "B K J new S"]:
  """x times the scale of each quantised slot; columns after the slots are left unchanged."""
  if scales is None:
    return x
  num_new = x.shape[-1] - scales.shape[-1]
  return x * jnp.pad(scales, ((0, 0), (0, 0), (0, num_new)), constant_values=1.0)[:, :, None, None]


def _forward(q, k, v, mask, bias, is_causal, soft_cap):
  mixed, log_sum = _attend(q, k, v, mask, bias, is_causal, soft_cap)
  # XLA starts stacks of equal shape as copies of one array of zeros: no two shapes are equal here.
  saved = (q, k, v[:, :, None], mixed[:, :, None], log_sum)
  saved = tuple(checkpoint_name(a, "attention") for a in stack.pack(saved))
  return mixed, (saved, mask, bias, jnp.zeros((0,), q.dtype))


def _backward(is_causal, soft_cap, residuals, cotangent):
  saved, mask, bias, like_q = residuals
  q, k, v, mixed, log_sum = stack.unpack(saved, (like_q.dtype,) * 4 + (jnp.dtype("float32"),))
  v, mixed = v[:, :, 0], mixed[:, :, 0]
  # FlashAttention's delta, [B, T, H]: the sum of weight * its cotangent over a query's keys.
  delta = (cotangent.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)
  backward_rows = lambda *arrays: _attend_causal_backward(*arrays, is_causal, soft_cap)
  arrays = (q, k, v, mask, cotangent, delta, log_sum, bias)
  sum_bias = bias is not None and bias.shape[0] == 1
  scores_per_row = q.shape[2] * mask[0].size
  d_q, d_k, d_v, d_bias = _map_row_chunks(backward_rows, arrays, scores_per_row, sum_bias)
  d_q = d_q.transpose(0, 4, 1, 3, 2).reshape(q.shape).astype(q.dtype)
  d_k, d_v = (d.transpose(0, 2, 1, 3).astype(k.dtype) for d in (d_k, d_v))
  return d_q, d_k, d_v, None, d_bias


def _attend_causal_backward(q, k, v, mask, cotangent, delta, log_sum, bias, is_causal, soft_cap):
  """Cotangents of q [B, K, C, J, T], k and v [B, K, S, C] and of the bias, float32."""
  before = k.shape[1] - q.shape[1]
  d_q, d_k, d_v, d_bias = 0.0, [], [], []
  # Queries before `first` do not attend to the keys of a block.
  for first, end in _blocks(q.shape[1]) if is_causal else [(0, q.shape[1])]:
    keys = slice(before + first if first else 0, before + end)
    block_q, block_k, block_v, block_bias = _attend_block_backward(
      (q[:, first:], k[:, keys], v[:, keys], mask[:, first:, keys]),
      (cotangent[:, first:], delta[:, first:], log_sum[..., first:]),
      _bias_block(bias, slice(first, None), keys),
      soft_cap,
    )
    d_q += jnp.pad(block_q, ((0, 0), (0, 0), (0, 0), (0, 0), (first, 0)))
    d_k.append(block_k)
    d_v.append(block_v)
    if bias is not None:  # costs nothing if its gradient is unused: XLA drops it
      skipped = first if bias.shape[2] > 1 else 0
      d_bias.append(jnp.pad(block_bias, ((0, 0), (0, 0), (skipped, 0), (0, 0))))
  d_k, d_v = jnp.concatenate(d_k, axis=2), jnp.concatenate(d_v, axis=2)
  return d_q, d_k, d_v, None if bias is None else jnp.concatenate(d_bias, axis=3)


def _attend_block_backward(inputs, outputs, bias, soft_cap):
  """`_attend_causal_backward` of one block, whose queries and keys are all compared."""
  (q, k, v, mask), (cotangent, delta, log_sum) = inputs, outputs
  b, t, h, c = q.shape
  s, heads = k.shape[1:3]
  split, merged = (b, heads, s, h // heads, t), (b, heads, s, -1)
  grouped = lambda a: a.reshape(b, heads, 1, h // heads, t)  # one number a query

  queries, keys, values = _by_head(q, heads), _by_head(k), _by_head(v)
  cotangents = _by_head(cotangent, heads, 1.0)
  delta = grouped(delta.transpose(0, 2, 1))

  # All of these are [B, K, S, J, T].
  scores = _product(keys, queries, 3, 3).reshape(split)
  if soft_cap is not None:
    tanh = jnp.tanh(scores / soft_cap)
    scores = soft_cap * tanh
  if bias is not None:
    grouped_bias = bias.reshape(bias.shape[0], heads, -1, *bias.shape[2:])  # [#B, K, J, #T, S]
    scores += grouped_bias.transpose(0, 1, 4, 2, 3)
  mask = mask.transpose(0, 2, 1)[:, None, :, None, :]
  weights = jnp.exp(jnp.where(mask, scores, MASKED_SCORE) - grouped(log_sum))
  d_weights = _product(values, cotangents, 3, 3).reshape(split)
  d_scores = weights * (d_weights - delta)
  d_bias = None if bias is None else _sum_to(d_scores.transpose(0, 1, 3, 4, 2), bias.shape)
  if soft_cap is not None:
    d_scores *= 1 - jnp.square(tanh)
  d_scores = d_scores.astype(q.dtype).reshape(merged)
  weights = weights.astype(q.dtype).reshape(merged)

  d_v = _product(weights, cotangents, 3, 2)
  d_k = _product(d_scores, queries, 3, 2)
  transposed_k = k.reshape(b, s, heads, 2, -1).transpose(0, 2, 3, 4, 1).reshape(b, heads, c, s)
  d_q = _product(transposed_k * jnp.asarray(c**-0.5, k.dtype), d_scores, 3, 2)
  return d_q.reshape(b, heads, c, -1, t), d_k, d_v, d_bias


attend.defvjp(_forward, _backward)


def _sum_to(x: Float[Array, "B K J T S"], shape: tuple[int, ...]) -> Float[Array, "_ _ _ S"]:
  """[B, K, J, T, S] as [B, H, T, S], summed over the axes that a bias of this shape broadcasts."""
  x = x.reshape(x.shape[0], -1, *x.shape[3:])
  return x.sum(axis=[i for i in range(4) if shape[i] == 1 != x.shape[i]], keepdims=True)


def _product(
  a: Float[Array, "B K _ _"], b: Float[Array, "B K _ _"], a_axis: int, b_axis: int
) -> Float[Array, "B K _ _"]:
  """float32 products over one axis each, batched over [B, K]."""
  dims = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _by_head(
  x: Float[Array, "B T H C"], heads: int | None = None, scale: float | None = None
) -> Float[Array, "B _ _ C"]:
  """[B, T, H, C] -> [B, K, J*T, C], scaled by C ** -0.5, if `heads` K is given (queries).

  Without `heads`, [B, S, K, C] -> [B, K, S, C]. It goes through halves of C, so that it ends in a
  reshape: XLA's CPU backend then multiplies in bfloat16, while after a bare transpose it would
  widen both operands to float32.
  """
  b, t, h, c = x.shape
  if heads is None:
    return x.reshape(b, t, h, 2, -1).transpose(0, 2, 1, 3, 4).reshape(b, h, t, c)
  scaled = x * jnp.asarray(c**-0.5 if scale is None else scale, x.dtype)
  groups = scaled.reshape(b, t, heads, h // heads, c)
  return groups.transpose(0, 2, 3, 1, 4).reshape(b, heads, -1, c)


def _by_position(x: Float[Array, "B K J T C"]) -> Float[Array, "B T _ C"]:
  """[B, K, J, T, C] -> [B, T, H, C]."""
  b, _, _, t, c = x.shape
  return x.transpose(0, 3, 1, 2, 4).reshape(b, t, -1, c)
