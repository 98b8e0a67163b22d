"""Drawing the next token: temperature, top-k, top-p, and one random number a row.

A row's token depends on its logits, its options and its number alone. Thresholds are found by
bisection over the bits of the scores, which sorts nothing: a vocabulary is long, and what is kept
of it is exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

_BLOCK = 256  # of the vocabulary, for the two steps of the search in a cumulative sum


class Options(NamedTuple):
  """How each row draws.

  temperature  float32 [R]  0 takes the likeliest token
  top_k        int32 [R]    only the k likeliest are drawn from; 0: all. Equals of the k-th stay
  top_p        float32 [R]  then only the fewest likeliest that have this share of what is left; 1:
                            all. Equals of the last stay
  """

  temperature: Float[Array, "R"]
  top_k: Int[Array, "R"]
  top_p: Float[Array, "R"]


class Drawn(NamedTuple):
  """A token a row, and how sure the model was of it.

  tokens     int32 [R]
  log_probs  float32 [R]  in nats, under the model as it is (temperature 1, uncut)
  margins    float32 [R]  by how much the token is likelier than the likeliest other one, in nats;
                          NaN where any row is sampled
  """

  tokens: Int[Array, "R"]
  log_probs: Float[Array, "R"]
  margins: Float[Array, "R"]


def draw(
  logits: Float[Array, "R V"],
  numbers: Float[Array, "R"],
  options: Options,
  *,
  sampled: bool,
  cut: bool,
) -> Drawn:
  """The next token of each row.

  Args:
    numbers: random, from 0 to below 1. sampled, cut: whether any row has a temperature above 0,
      and whether any of those is cut by top-k or top-p; what nobody asks for costs nothing.
  """
  logits = logits.astype(jnp.float32)
  tokens = _likeliest(logits)
  if sampled:
    warm = jnp.maximum(options.temperature, 1e-6)[:, None]
    scores = (logits - logits.max(axis=-1, keepdims=True)) / warm
    weights = jnp.exp(scores)
    if cut:
      weights = jnp.where(_kept(scores, weights, options), weights, 0.0)
    drawn = _search(weights, numbers)
    tokens = jnp.where(options.temperature > 0, drawn, tokens)
  tokens = tokens.astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
  margins = jnp.full_like(chosen, jnp.nan) if sampled else chosen - _likeliest_other(logits, tokens)
  return Drawn(tokens, chosen - jax.nn.logsumexp(logits, axis=-1), margins)


def numbers(
  seeds: UInt[Array, "R"], samples: Int[Array, "R"], places: Int[Array, "R"]
) -> Float[Array, "R"]:
  """A random number from 0 to below 1 for each row: of its seed, its sample and its place."""

  def one(seed, sample, place):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), place)
    return jax.random.uniform(key)

  return jax.vmap(one)(seeds, samples, places)


def _likeliest(logits: Float[Array, "R V"]) -> Int[Array, "R"]:
  """The first of the largest logits.

  As two plain reductions: of an arg max XLA's CPU backend makes a loop over single numbers.
  """
  last = logits.shape[-1] - 1
  largest = logits == logits.max(axis=-1, keepdims=True)
  return jnp.where(largest, jnp.arange(last + 1), last).min(axis=-1)


def _likeliest_other(logits: Float[Array, "R V"], tokens: Int[Array, "R"]) -> Float[Array, "R"]:
  """The largest logit but the token's; -inf in a vocabulary of one."""
  others = jnp.arange(logits.shape[-1]) != tokens[:, None]
  return jnp.where(others, logits, -jnp.inf).max(axis=-1)


def _kept(scores: Array, weights: Array, options: Options) -> Bool[Array, "R V"]:
  order = _ordered(scores)
  wanted = jnp.where(options.top_k > 0, options.top_k, scores.shape[-1])
  count = lambda kept: kept.sum(axis=-1)
  kept = order >= _threshold(order, lambda kept: count(kept) >= wanted)[:, None]
  left = jnp.where(kept, weights, 0.0)
  share = options.top_p * left.sum(axis=-1)
  mass = lambda kept: jnp.where(kept, left, 0.0).sum(axis=-1)
  # A share of 1 is everything, however sums round.
  enough = lambda kept: (mass(kept) >= share) & ((options.top_p < 1) | (count(kept) >= wanted))
  return kept & (order >= _threshold(order, enough)[:, None])


def _ordered(scores: Float[Array, "R V"]) -> UInt[Array, "R V"]:
  """Whole numbers in the order of the scores."""
  bits = jax.lax.bitcast_convert_type(scores + 0.0, jnp.uint32)  # -0.0 + 0.0 is 0.0
  negative = bits >> 31 == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(
  order: UInt[Array, "R V"], enough: Callable[[Bool[Array, "R V"]], Bool[Array, "R"]]
) -> UInt[Array, "R"]:
  """The largest number t of each row such that `enough` of what is at least t."""

  def bit(at, found):
    tried = found | (jnp.uint32(1) << (31 - at).astype(jnp.uint32))
    return jnp.where(enough(order >= tried[:, None]), tried, found)

  return jax.lax.fori_loop(0, 32, bit, jnp.zeros(len(order), jnp.uint32))


def _search(weights: Float[Array, "R V"], numbers: Float[Array, "R"]) -> Int[Array, "R"]:
  """Which token each number falls on, when their weights stand one behind the other."""
  rows, size = weights.shape
  blocks = -(-size // _BLOCK)
  weights = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - size))).reshape(rows, blocks, _BLOCK)
  sums = weights.sum(axis=-1)
  block, before = _fallen(sums, numbers * sums.sum(axis=-1))
  inner = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
  place, _ = _fallen(inner, numbers * sums.sum(axis=-1) - before)
  return block * _BLOCK + place


def _fallen(weights: Float[Array, "R N"], at: Float[Array, "R"]) -> tuple[Array, Array]:
  """Index and start of the weight that `at` falls on; behind all of them the last that is not 0."""
  ends = jnp.cumsum(weights, axis=-1)
  index = (ends <= jnp.maximum(at, 0.0)[:, None]).sum(axis=-1)  # passes over what weighs 0
  last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
  index = jnp.minimum(index, last)
  start = jnp.take_along_axis(ends - weights, index[:, None], axis=1)[:, 0]
  return index, start
