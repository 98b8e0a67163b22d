"""How likely a decoder holds given targets: the vocabulary projection where there is a target.

Goes through the vocabulary in blocks that stay in the processor's cache, with a running maximum
and sum as FlashAttention's softmax has (Dao et al. 2022), so that the logits of all targets are
never held at once. Their derivative needs no second look at the vocabulary: the log-likelihood of a
target depends on its own hidden state alone, and its slope, head[target] - sum of softmax * head,
is summed up beside the softmax. The backward pass only scales it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import decoder, stack
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.linear import project

LOGITS_AT_ONCE = 2**20  # float32 numbers in one block: 4 MB
FEW = 4  # up to so many blocks' worth are not worth taking the vocabulary apart for
LANES = 8  # a block takes equal parts of so many parts of the vocabulary: a sharded one stays put


class _Sums(NamedTuple):
  """What one or more blocks of the vocabulary say about the targets; each float32 [B, M, ...].

  top: the largest logit. total: the sum of exp(logit - top). mean: that of exp(logit - top) times
  the slope of the logit, [B, M, D], where slopes are wanted. wanted: the target's logit, if met.
  """

  top: jax.Array
  total: jax.Array
  mean: jax.Array | None
  wanted: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def target_log_likelihood(
  params: decoder.Params,
  config: DecoderConfig,
  states: Float[Array, "B M D"],
  target_ids: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
  """Hidden states at M gathered positions and the token wanted at each -> what the model says.

  Returns the log-likelihood of each target in nats, float32 [B, M], and whether no token is
  likelier, bool [B, M]. Gradients reach the states alone.
  """
  sums = _sums(params, config, states, target_ids, slopes=False)
  return _likelihood(sums), sums.wanted >= sums.top


def _forward(params, config, states, target_ids):
  sums = _sums(params, config, states, target_ids, slopes=True)
  kernel, axis = decoder.vocabulary(params, config)
  ahead = stack.take(kernel, target_ids, axis=1 - axis)  # [B, M, D], or [D, B, M] untied
  ahead = ahead if axis == 1 else jnp.moveaxis(ahead, 0, -1)
  ahead = _bent(ahead.astype(jnp.float32), sums.wanted[..., None], config)
  slope = ahead - sums.mean / sums.total[..., None]
  return (_likelihood(sums), sums.wanted >= sums.top), (slope, jnp.zeros((0,), states.dtype))


def _backward(config, residuals, cotangents):
  slope, like = residuals
  return None, (slope * cotangents[0][..., None]).astype(like.dtype), None


target_log_likelihood.defvjp(_forward, _backward)


def _likelihood(sums: _Sums) -> jax.Array:
  return sums.wanted - sums.top - jnp.log(sums.total)


def _sums(params, config, states, target_ids, slopes: bool) -> _Sums:
  kernel, axis = decoder.vocabulary(params, config)
  bias = params["head"]["bias"][None] if config.head_bias else None
  lanes = LANES if config.vocab_size % LANES == 0 else 1
  lane = config.vocab_size // lanes
  width = min(lane, max(1, LOGITS_AT_ONCE // (target_ids.size * lanes)))  # of a block, in a lane
  if target_ids.size * config.vocab_size <= FEW * LOGITS_AT_ONCE:
    width = lane
  blocks, rest = divmod(lane, width)

  def look(start, width, kernel):
    part = _part(kernel, axis, lanes, start, width)
    shift = None if bias is None else _part(bias, 0, lanes, start, width)[0]
    offset = target_ids % lane - start
    column = target_ids // lane * width + offset
    met = (offset >= 0) & (offset < width)
    return _block(config, (part, axis, shift), states, jnp.where(met, column, 0), met, slopes)

  if width == lane:
    return look(0, lane, kernel)
  sums = look(0, rest or width, kernel)
  starts = jnp.arange(0 if rest else 1, blocks) * width + rest

  def body(sums, start):
    # The barrier keeps XLA from laying out the whole kernel anew before the loop.
    start, held = jax.lax.optimization_barrier((start, kernel))
    return _join(sums, look(start, width, held)), None

  return jax.lax.scan(body, sums, starts)[0]


def _part(kernel, axis: int, lanes: int, start, width: int):
  """Rows (or columns, axis 0) start : start + width of each of the kernel's equal lanes."""

  def cut(a):
    if axis == 1:
      lanewise = a.reshape(lanes, -1, a.shape[1])
      part = jax.lax.dynamic_slice_in_dim(lanewise, start, width, axis=1)
      return part.reshape(-1, a.shape[1])
    lanewise = a.reshape(a.shape[0], lanes, -1)
    part = jax.lax.dynamic_slice_in_dim(lanewise, start, width, axis=2)
    return part.reshape(a.shape[0], -1)

  return stack.each(cut, kernel)  # codes, scales and offsets have as many rows (columns)


def _block(config, part, states, column, met, slopes: bool) -> _Sums:
  kernel, axis, shift = part
  scores = project(states, kernel, axis)
  if shift is not None:
    scores = scores + shift.astype(jnp.float32)
  scores = decoder.capped(scores, config.logit_cap)
  top = scores.max(axis=-1)
  weights = jnp.exp(scores - top[..., None])
  wanted = jnp.take_along_axis(scores, column[..., None], axis=-1)[..., 0]
  mean = project(_bent(weights, scores, config), kernel, 1 - axis) if slopes else None
  return _Sums(top, weights.sum(axis=-1), mean, jnp.where(met, wanted, -jnp.inf))


def _bent(x: jax.Array, scores: jax.Array, config: DecoderConfig) -> jax.Array:
  """x times the derivative of `decoder.capped` where it gave these scores."""
  return x if config.logit_cap is None else x * (1 - jnp.square(scores / config.logit_cap))


def _join(a: _Sums, b: _Sums) -> _Sums:
  top = jnp.maximum(a.top, b.top)
  old, new = jnp.exp(a.top - top), jnp.exp(b.top - top)
  mean = None
  if a.mean is not None:
    mean = a.mean * old[..., None] + b.mean * new[..., None]
  total = a.total * old + b.total * new
  return _Sums(top, total, mean, jnp.maximum(a.wanted, b.wanted))
