"""Grouped-query attention and what it is shaped by: rotations, masks, biases; float32 softmaxes.

The attention carries its own derivative. It keeps queries, keys, values and one float a query (the
logarithm of the softmax's sum, as FlashAttention does, Dao et al. 2022) and recomputes the
weights; and it forms them transposed in the backward pass, so that no product there has to
transpose a [T, S] matrix, which costs more than the product. On a CPU it takes so few rows at a
time that their scores stay in the cache: they are read and written several times.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import cache, stack

# Finite, so that a query with nothing to look at yields zeros, not NaN: its scores are NEGATIVE,
# its maximum is FLOOR, and exp(NEGATIVE - FLOOR) is 0.
NEGATIVE, FLOOR, TINY = -1e30, -1e20, 1e-30
BLOCK, MOST_BLOCKS = 128, 8  # of ordered attention; fewer, larger blocks are quicker to compile
CACHED = 2**21  # scores that stay in a CPU's cache


def rotate(
  x: Float[Array, "B T H C"], cos_sin: tuple[Array, Array], interleaved: bool = False
) -> Float[Array, "B T H C"]:
  """Rotates the first numbers of each head by cos and sin [B, T, R/2]; those after R stay.

  A pair is (i, i + R/2), as in GPT-NeoX and Llama, or `interleaved` (2i, 2i + 1), as in GPT-J.
  """
  cos, sin = (a[:, :, None, :] for a in cos_sin)
  x = x.astype(jnp.float32)
  turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
  if interleaved:
    first, second = turned[..., ::2], turned[..., 1::2]
  else:
    first, second = jnp.split(turned, 2, axis=-1)
  first, second = first * cos - second * sin, second * cos + first * sin
  if interleaved:
    turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate([first, second], axis=-1)
  return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def slopes(heads: int) -> np.ndarray:
  """ALiBi's slope of each head, float32 [H] (Press et al. 2022)."""
  whole = 2 ** math.floor(math.log2(heads))
  of = lambda count: 2.0 ** (-8.0 / count * np.arange(1, count + 1))
  return np.concatenate([of(whole), of(2 * whole)[::2][: heads - whole]]).astype(np.float32)


def causal(mask: Int[Array, "B T"] | None, length: int) -> Bool[Array, "B T T"]:
  """Which keys (last axis) each position may look at: real ones that do not come after it."""
  order = jnp.tril(jnp.ones((length, length), bool))[None]
  return order if mask is None else order & (mask[:, None, :] > 0)


def within(
  queries: Int[Array, "B T"], keys: Int[Array, "B S"], window: int
) -> Bool[Array, "B T S"]:
  """Which keys are among the last `window` positions of each query, itself included."""
  return queries[:, :, None] - keys[:, None, :] < window


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B S K C"],
  v: Float[Array, "B S K C"],
  visible: Bool[Array, "B T S"],
  bias: Float[Array, "#B H #T S"] | None = None,
  ordered: bool = False,
  cap: float | None = None,
) -> Float[Array, "B T H C"]:
  """Softmax attention; query head h reads key/value head h // (H / K).

  Scores are q·k / sqrt(C), then `cap` * tanh(score / cap) where a cap is given (Gemma 2), plus the
  bias (float32). A query that sees no key gives zeros. Products multiply in
  the operands' dtype and accumulate in float32; the result has the dtype of q. `ordered` says that
  no query sees a key behind its own place (T = S, as `causal` has it): long texts then go in blocks
  that leave out what no query sees.
  """
  return _attend(q, k, v, visible, bias, ordered, cap)[0]


def _attend(q, k, v, visible, bias, ordered, cap):
  """Result [B, T, H, C] and the logarithm of each softmax's sum, float32 [B, K, G, T]."""
  look = lambda *arguments: _look_in_order(*arguments, ordered, cap)
  mixed, log_total = _by_rows(look, (q, k, v, visible, bias), q.shape[2] * visible[0].size)
  return _by_position(mixed).astype(q.dtype), log_total


def _by_rows(fn, arguments, scores, summed=False):
  """fn(*arguments), arrays or None with rows in front (all, or 1); some rows at a time on a CPU.

  scores: how many of them a row has. summed: the last result has 1 row, summed over all.
  """
  rows = arguments[0].shape[0]
  at_once = _at_once(rows, scores)
  if at_once == rows:
    return fn(*arguments)
  split = tuple(
    a.reshape(-1, at_once, *a.shape[1:]) if a is not None and a.shape[0] == rows else None
    for a in arguments
  )
  part = lambda own: fn(*(a if o is None else o for a, o in zip(arguments, own, strict=True)))
  *found, last = jax.lax.map(part, split)
  whole = lambda a: None if a is None else a.reshape(rows, *a.shape[2:])
  return (*map(whole, found), last.sum(axis=0) if summed else whole(last))


def _at_once(rows: int, scores: int) -> int:
  """How many rows of so many scores are taken at a time; a divisor of `rows`."""
  # On several devices the rows are spread, and each would have to be fetched.
  if jax.default_backend() != "cpu" or jax.device_count() > 1 or rows * scores <= 2 * CACHED:
    return rows
  return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * scores <= CACHED))


def _look_in_order(q, k, v, visible, bias, ordered, cap):
  """Result [B, K, G, T, C] and the logarithm of each softmax's sum [B, K, G, T], both float32."""
  if not ordered:
    return _look(q, k, v, visible, bias, cap)
  parts = []
  for start, end in _blocks(q.shape[1]):
    part = (q[:, start:end], k[:, :end], v[:, :end], visible[:, start:end, :end])
    parts.append(_look(*part, _part(bias, start, end, 0, end), cap))
  return tuple(jnp.concatenate(each, axis=3) for each in zip(*parts, strict=True))


def _part(bias, start, end, first, last):
  """The bias of queries start : end and keys first : last."""
  if bias is None:
    return None
  rows = slice(None) if bias.shape[2] == 1 else slice(start, end)
  return bias[:, :, rows, first:last]


def _blocks(length: int) -> list[tuple[int, int]]:
  """Starts and ends of at most MOST_BLOCKS equal parts, none below BLOCK long but the last."""
  width = max(BLOCK, -(-length // MOST_BLOCKS))
  return [(start, min(start + width, length)) for start in range(0, length, width)]


def _look(q, k, v, visible, bias, cap):
  """`_look_in_order` of queries that may look at any of these keys."""
  b, t, _, _ = q.shape
  queries, keys, values = _by_head(q, k.shape[2]), _by_head(k), _by_head(v)
  scores = _product(queries, keys, 3, 3).reshape(b, k.shape[2], -1, t, k.shape[1])  # [B,K,G,T,S]
  weights, top, total = _weights(scores, visible, bias, cap)
  mixed = _product(weights.astype(v.dtype).reshape(*queries.shape[:3], -1), values, 3, 2)
  mixed = mixed.reshape(*total.shape, -1) / total[..., None]
  return mixed, top + jnp.log(total)


def _weights(scores, visible, bias, cap):
  """Scores [B, K, G, T, S] -> exp(score - top), top and the sums of the former [B, K, G, T]."""
  if cap is not None:
    scores = cap * jnp.tanh(scores / cap)
  if bias is not None:
    scores += bias.reshape(bias.shape[0], scores.shape[1], -1, *bias.shape[2:])
  scores = jnp.where(visible[:, None, None], scores, NEGATIVE)
  top = jnp.maximum(scores.max(axis=-1), FLOOR)
  weights = jnp.exp(scores - top[..., None])
  return weights, top, jnp.maximum(weights.sum(axis=-1), TINY)


def look_back(
  q: Float[Array, "B N H C"],
  slots: tuple[cache.Slots, cache.Slots],
  visible: Bool[Array, "B N S"],
  bias: Float[Array, "#B H #N S"] | None = None,
  cap: float | None = None,
  new: tuple[Float[Array, "B N K C"], Float[Array, "B N K C"]] | None = None,
) -> Float[Array, "B N H C"]:
  """`attend` to cached keys and values, which are read where they lie; no derivative.

  slots: as `cache.KVCache` keeps them. new: keys and values that are in no slot; the last axis of
  `visible` and bias has the cached ones, then these.
  """
  b, n, _, c = q.shape
  keys, key_scales = cache.numbers_and_scales(slots[0], q.dtype)
  values, value_scales = cache.numbers_and_scales(slots[1], q.dtype)
  queries = _by_head(q, values.shape[1])
  scores = _product(queries, keys, 3, 2)
  if new is not None:
    scores = jnp.concatenate([scores, _product(queries, _by_head(new[0]), 3, 3)], axis=-1)
  scores = _scaled(scores.reshape(b, values.shape[1], -1, n, scores.shape[-1]), key_scales)
  weights, _, total = _weights(scores, visible, bias, cap)
  weights = _scaled(weights, value_scales).astype(q.dtype).reshape(*queries.shape[:3], -1)
  old = values.shape[2]
  mixed = _product(weights[..., :old], values, 3, 2)
  if new is not None:
    mixed += _product(weights[..., old:], _by_head(new[1]), 3, 2)
  return _by_position(mixed.reshape(*total.shape, c) / total[..., None]).astype(q.dtype)


def _scaled(x: Float[Array, "B K G N S"], scales: Float[Array, "B K S"] | None) -> Array:
  """x times the scale of each cached slot, where the slots have any."""
  if scales is None:
    return x
  new = x.shape[-1] - scales.shape[-1]
  return x * jnp.pad(scales, ((0, 0), (0, 0), (0, new)), constant_values=1.0)[:, :, None, None]


def _forward(q, k, v, visible, bias, ordered, cap):
  mixed, log_total = _attend(q, k, v, visible, bias, ordered, cap)
  # Stacks of equal shape start from one array of zeros that XLA then copies: no two are equal.
  kept = (q, k, v[:, :, None], mixed[:, :, None], log_total)
  kept = tuple(checkpoint_name(a, "attention") for a in stack.pack(kept))
  return mixed, (kept, visible, bias, jnp.zeros((0,), q.dtype))


def _backward(ordered, cap, residuals, cotangent):
  kept, visible, bias, like = residuals
  q, k, v, mixed, log_total = stack.unpack(kept, (like.dtype,) * 4 + (jnp.dtype("float32"),))
  v, mixed = v[:, :, 0], mixed[:, :, 0]
  inner = (cotangent.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)  # [B, T, H]
  look_back = lambda *arguments: _look_back_in_order(*arguments, ordered, cap)
  arguments = (q, k, v, visible, cotangent, inner, log_total, bias)
  summed = bias is not None and bias.shape[0] == 1
  d_q, d_k, d_v, d_bias = _by_rows(look_back, arguments, q.shape[2] * visible[0].size, summed)
  d_q = d_q.transpose(0, 4, 1, 3, 2).reshape(q.shape).astype(q.dtype)
  d_k, d_v = (d.transpose(0, 2, 1, 3).astype(k.dtype) for d in (d_k, d_v))
  return d_q, d_k, d_v, None, d_bias


def _look_back_in_order(q, k, v, visible, cotangent, inner, log_total, bias, ordered, cap):
  """Cotangents of q [B, K, C, G, T], k and v [B, K, S, C] and of the bias, float32."""
  length = q.shape[1]
  d_q, d_k, d_v, d_bias = 0.0, [], [], []
  for start, end in _blocks(length) if ordered else [(0, k.shape[1])]:
    first = start if ordered else 0  # no query before it sees these keys
    part_q, part_k, part_v, part_bias = _look_back(
      (q[:, first:], k[:, start:end], v[:, start:end], visible[:, first:, start:end]),
      (cotangent[:, first:], inner[:, first:], log_total[..., first:]),
      _part(bias, first, length, start, end),
      cap,
    )
    d_q += jnp.pad(part_q, ((0, 0), (0, 0), (0, 0), (0, 0), (first, 0)))
    d_k.append(part_k)
    d_v.append(part_v)
    if bias is not None:  # of no cost where nobody asks for it: XLA drops what is not used
      rows = first if bias.shape[2] > 1 else 0
      d_bias.append(jnp.pad(part_bias, ((0, 0), (0, 0), (rows, 0), (0, 0))))
  d_k, d_v = jnp.concatenate(d_k, axis=2), jnp.concatenate(d_v, axis=2)
  return d_q, d_k, d_v, None if bias is None else jnp.concatenate(d_bias, axis=3)


def _look_back(inputs, outputs, bias, cap):
  """`_look_back_in_order` of queries that may look at any of these keys."""
  (q, k, v, visible), (cotangent, inner, log_total) = inputs, outputs
  b, t, h, c = q.shape
  s, heads = k.shape[1:3]
  split, merged = (b, heads, s, h // heads, t), (b, heads, s, -1)
  grouped = lambda a: a.reshape(b, heads, 1, h // heads, t)  # one number a query

  queries, keys, values = _by_head(q, heads), _by_head(k), _by_head(v)
  cotangents = _by_head(cotangent, heads, 1.0)
  inner = grouped(inner.transpose(0, 2, 1))

  # All of these are [B, K, S, G, T].
  scores = _product(keys, queries, 3, 3).reshape(split)
  if cap is not None:
    bent = jnp.tanh(scores / cap)
    scores = cap * bent
  if bias is not None:
    grouped_bias = bias.reshape(bias.shape[0], heads, -1, *bias.shape[2:])  # [#B, K, G, #T, S]
    scores += grouped_bias.transpose(0, 1, 4, 2, 3)
  seen = visible.transpose(0, 2, 1)[:, None, :, None, :]
  weights = jnp.exp(jnp.where(seen, scores, NEGATIVE) - grouped(log_total))
  d_weights = _product(values, cotangents, 3, 3).reshape(split)
  d_scores = weights * (d_weights - inner)
  d_bias = None if bias is None else _sum_to(d_scores.transpose(0, 1, 3, 4, 2), bias.shape)
  if cap is not None:
    d_scores *= 1 - jnp.square(bent)
  d_scores = d_scores.astype(q.dtype).reshape(merged)
  weights = weights.astype(q.dtype).reshape(merged)

  d_v = _product(weights, cotangents, 3, 2)
  d_k = _product(d_scores, queries, 3, 2)
  across = k.reshape(b, s, heads, 2, -1).transpose(0, 2, 3, 4, 1).reshape(b, heads, c, s)
  d_q = _product(across * jnp.asarray(c**-0.5, k.dtype), d_scores, 3, 2)
  return d_q.reshape(b, heads, c, -1, t), d_k, d_v, d_bias


attend.defvjp(_forward, _backward)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
  """[B, K, G, T, S] as [B, H, T, S], summed over what is broadcast in a bias of this shape."""
  x = x.reshape(x.shape[0], -1, *x.shape[3:])
  return x.sum(axis=[i for i in range(4) if shape[i] == 1 != x.shape[i]], keepdims=True)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  """float32 products over one axis each, batched over [B, K]."""
  dims = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _by_head(x: Array, heads: int | None = None, scale: float | None = None) -> Array:
  """[B, T, H, C] -> [B, K, G*T, C] and scaled by C ** -0.5 when `heads` K is given (queries).

  Without `heads`, [B, S, K, C] -> [B, K, S, C]; the detour over halves of C ends in a reshape,
  behind which XLA's CPU backend multiplies bfloat16 as such: behind a bare transpose it would widen
  both operands to float32.
  """
  b, t, h, c = x.shape
  if heads is None:
    return x.reshape(b, t, h, 2, -1).transpose(0, 2, 1, 3, 4).reshape(b, h, t, c)
  scaled = x * jnp.asarray(c**-0.5 if scale is None else scale, x.dtype)
  groups = scaled.reshape(b, t, heads, h // heads, c)
  return groups.transpose(0, 2, 3, 1, 4).reshape(b, heads, -1, c)


def _by_position(x: Array) -> Array:
  """[B, K, G, T, C] -> [B, T, H, C]."""
  b, _, _, t, c = x.shape
  return x.transpose(0, 3, 1, 2, 4).reshape(b, t, -1, c)
