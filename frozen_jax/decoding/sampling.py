"""Sampling the next token: temperature, top-k, top-p, and one random number a row.

A row's token depends on its logits, its options and its random number only. Thresholds are found by
bisection over the bits of the scores, without sorting: a vocabulary is long. The result is exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

_BLOCK = 256  # of the vocabulary, for the two steps of the search in a cumulative sum


class SamplingOptions(NamedTuple):
  """How each row is sampled.

  temperature  float32 [B]  0 takes the likeliest token
  top_k        int32 [B]    only the k likeliest are sampled from; 0: all. Ties with the k-th stay
  top_p        float32 [B]  then only the fewest likeliest with this share of the remaining
                            probability; 1: all. Ties with the last stay
  """

  temperature: Float[Array | np.ndarray, "B"]
  top_k: Int[Array | np.ndarray, "B"]
  top_p: Float[Array | np.ndarray, "B"]


class SampledTokens(NamedTuple):
  """A token a row, and how sure the model was of it.

  tokens     int32 [B]
  log_probs  float32 [B]  in nats, under the unmodified distribution (temperature 1, not truncated)
  margins    float32 [B]  by how much the token is likelier than the likeliest other one, in nats;
                          NaN where any row is sampled
  """

  tokens: Int[Array, "*B"]
  log_probs: Float[Array, "*B"]
  margins: Float[Array, "*B"]


def sample(
  logits: Float[Array, "B V"],
  uniforms: Float[Array, "B"],
  options: SamplingOptions,
  *,
  sampled: bool,
  truncated: bool,
) -> SampledTokens:
  """The next token of each row.

  Args:
    uniforms: random numbers from 0 to below 1.
    sampled, truncated: whether any row has a temperature above 0, and whether top-k or top-p leave
      tokens out for any of those; what is not needed costs nothing.
  """
  logits = logits.astype(jnp.float32)
  tokens = _argmax(logits)
  if sampled:
    temperature = jnp.maximum(options.temperature, 1e-6)[:, None]
    scores = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    weights = jnp.exp(scores)
    if truncated:
      weights = jnp.where(_keep_mask(scores, weights, options), weights, 0.0)
    sampled_tokens = _inverse_cdf(weights, uniforms)
    tokens = jnp.where(options.temperature > 0, sampled_tokens, tokens)
  tokens = tokens.astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
  if sampled:
    margins = jnp.full_like(chosen, jnp.nan)
  else:
    margins = chosen - _largest_other_logit(logits, tokens)
  return SampledTokens(tokens, chosen - jax.nn.logsumexp(logits, axis=-1), margins)


def uniforms(
  seeds: UInt[Array, "B"], samples: Int[Array, "B"], positions: Int[Array, "B"]
) -> Float[Array, "B"]:
  """A random number from 0 to below 1 for each row, of its seed, sample and position."""

  def one(seed, sample, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
    return jax.random.uniform(key)

  return jax.vmap(one)(seeds, samples, positions)


def _argmax(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
  """The first of the largest logits.

  As two plain reductions: XLA's CPU backend makes a scalar loop of an arg max.
  """
  last = logits.shape[-1] - 1
  largest = logits == logits.max(axis=-1, keepdims=True)
  return jnp.where(largest, jnp.arange(last + 1), last).min(axis=-1)


def _largest_other_logit(logits: Float[Array, "B V"], tokens: Int[Array, "B"]) -> Float[Array, "B"]:
  """The largest logit but the token's; -inf in a vocabulary of one."""
  others = jnp.arange(logits.shape[-1]) != tokens[:, None]
  return jnp.where(others, logits, -jnp.inf).max(axis=-1)


def _keep_mask(
  scores: Float[Array, "B V"], weights: Float[Array, "B V"], options: SamplingOptions
) -> Bool[Array, "B V"]:
  """The tokens that top-k and then top-p leave."""
  ranks = _sortable_bits(scores)
  k = jnp.where(options.top_k > 0, options.top_k, scores.shape[-1])
  count = lambda keep: keep.sum(axis=-1)
  keep = ranks >= _threshold(ranks, lambda keep: count(keep) >= k)[:, None]
  remaining = jnp.where(keep, weights, 0.0)
  mass = options.top_p * remaining.sum(axis=-1)
  mass_of = lambda keep: jnp.where(keep, remaining, 0.0).sum(axis=-1)
  # A share of 1 is everything, however sums round.
  enough = lambda keep: (mass_of(keep) >= mass) & ((options.top_p < 1) | (count(keep) >= k))
  return keep & (ranks >= _threshold(ranks, enough)[:, None])


def _sortable_bits(scores: Float[Array, "B V"]) -> UInt[Array, "B V"]:
  """Unsigned integers in the order of the scores."""
  bits = jax.lax.bitcast_convert_type(scores + 0.0, jnp.uint32)  # -0.0 + 0.0 is 0.0
  negative = bits >> 31 == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(
  ranks: UInt[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]
) -> UInt[Array, "B"]:
  """The largest number t of each row such that `enough` holds of those of at least t."""

  def set_bit(index, threshold):
    candidate = threshold | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
    return jnp.where(enough(ranks >= candidate[:, None]), candidate, threshold)

  return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(len(ranks), jnp.uint32))


def _inverse_cdf(weights: Float[Array, "B V"], uniforms: Float[Array, "B"]) -> Int[Array, "B"]:
  """The token of each row where the cumulative sum of its weights passes its random number.

  Numbers count as shares of the sum. Searched for in two steps, blocks and then tokens.
  """
  rows, size = weights.shape
  blocks = -(-size // _BLOCK)
  weights = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - size))).reshape(rows, blocks, _BLOCK)
  sums = weights.sum(axis=-1)
  block, before = _search_cumsum(sums, uniforms * sums.sum(axis=-1))
  within = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
  index, _ = _search_cumsum(within, uniforms * sums.sum(axis=-1) - before)
  return block * _BLOCK + index


def _search_cumsum(
  weights: Float[Array, "B N"], values: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Index of the weight at which the cumulative sum passes the value, and the sum before it.

  Past all of them it is the last weight that is not 0.
  """
  ends = jnp.cumsum(weights, axis=-1)
  index = (ends <= jnp.maximum(values, 0.0)[:, None]).sum(axis=-1)  # passes over weights of 0
  last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
  index = jnp.minimum(index, last)
  start = jnp.take_along_axis(ends - weights, index[:, None], axis=1)[:, 0]
  return index, start
