"""The log-likelihood of target tokens under a decoder: the LM head, applied only at the targets.

On one CPU the vocabulary is processed in blocks that fit into the processor's cache, with a running
maximum and sum as in FlashAttention's softmax (Dao et al. 2022), so that the logits of all targets
never exist at once. Elsewhere they do, split over all devices: by the vocabulary, so that the few
states at targets are moved and not the head; or by rows, where the head is the smaller one.

The derivative needs no second pass over the vocabulary: the log-likelihood of a target depends only
on its own hidden state, and its gradient, head[target] - sum of softmax * head, is accumulated
together with the softmax. The backward pass only scales it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import decoder, lm_head, stack
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.linear import project
from frozen_jax.sharding.activations import constrain_rows, mesh_of, platform_of

LOGITS_PER_BLOCK = 2**20  # float32 numbers in one block: 4 MB
LOGITS_PER_DEVICE = 2**28  # elsewhere than on one CPU: 1 GB
MAX_UNSPLIT_BLOCKS = 4  # a vocabulary of at most so many blocks is not split


class _Sums(NamedTuple):
  """Sums over one or more blocks of the vocabulary, float32.

  top: the largest logit. total: the sum of exp(logit - top). weighted: the sum of exp(logit - top)
  times the gradient of the logit, or None. target: the target's logit; -inf if in no block.
  """

  top: Float[Array, "B M"]
  total: Float[Array, "B M"]
  weighted: Float[Array, "B M D"] | None
  target: Float[Array, "B M"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def target_log_likelihood(
  params: decoder.Params,
  config: DecoderConfig,
  states: Float[Array, "B M D"],
  target_ids: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
  """The log-likelihood of a target token at each of M gathered positions, in nats, float32.

  states: hidden states at the positions. Also returns whether no token is likelier than the target.
  Only the states get a gradient.
  """
  sums = _sums(params, config, states, target_ids, with_gradient=False)
  return _log_likelihood(sums), sums.target >= sums.top


def _forward(params, config, states, target_ids):
  sums = _sums(params, config, states, target_ids, with_gradient=True)
  kernel, axis = lm_head.kernel_and_axis(params, config)
  target_row = stack.take(kernel, target_ids, axis=1 - axis)  # [B, M, D], or [D, B, M] untied
  target_row = target_row if axis == 1 else jnp.moveaxis(target_row, 0, -1)
  target_row = target_row.astype(jnp.float32)
  d_target = _times_soft_cap_slope(target_row, sums.target[..., None], config)
  d_states = d_target - sums.weighted / sums.total[..., None]
  outputs = _log_likelihood(sums), sums.target >= sums.top
  return outputs, (d_states, jnp.zeros((0,), states.dtype))


def _backward(config, residuals, cotangents):
  d_states, like_states = residuals
  return None, (d_states * cotangents[0][..., None]).astype(like_states.dtype), None


target_log_likelihood.defvjp(_forward, _backward)


def _log_likelihood(sums: _Sums) -> Float[Array, "B M"]:
  return sums.target - sums.top - jnp.log(sums.total)


def _sums(params, config, states, target_ids, with_gradient: bool) -> _Sums:
  """The sums over the whole vocabulary, on one CPU block by block."""
  if platform_of(params["final_norm"]["scale"]) != "cpu" or mesh_of(states) is not None:
    return _sharded_sums(params, config, states, target_ids, with_gradient)
  kernel, axis = lm_head.kernel_and_axis(params, config)
  bias = params["head"]["bias"][None] if config.head_bias else None
  width = min(config.vocab_size, max(1, LOGITS_PER_BLOCK // target_ids.size))
  if target_ids.size * config.vocab_size <= MAX_UNSPLIT_BLOCKS * LOGITS_PER_BLOCK:
    width = config.vocab_size
  blocks, rest = divmod(config.vocab_size, width)

  def block_sums(start, width, kernel):
    block = _vocabulary_block(kernel, 1 - axis, start, width)
    block_bias = None if bias is None else _vocabulary_block(bias, 1, start, width)[0]
    column = target_ids - start
    in_block = (column >= 0) & (column < width)
    target = (jnp.where(in_block, column, 0), in_block)
    return _block_sums(config, (block, axis, block_bias), states, target, with_gradient)

  if width == config.vocab_size:
    return block_sums(0, width, kernel)
  sums = block_sums(0, rest or width, kernel)
  starts = jnp.arange(0 if rest else 1, blocks) * width + rest

  def body(sums, start):
    start, kernel_in_loop = stack.keep_in_loop(start, kernel)
    return _joined(sums, block_sums(start, width, kernel_in_loop)), None

  return jax.lax.scan(body, sums, starts)[0]


def _sharded_sums(params, config, states, target_ids, with_gradient: bool) -> _Sums:
  """The sums over the vocabulary at once, each device with its part of the logits.

  Where those would be too many, the targets are processed in several parts, one after the other.
  """
  mesh, (_, targets) = mesh_of(states), target_ids.shape
  logits = target_ids.size * config.vocab_size // (1 if mesh is None else mesh.size)
  parts = next(n for n in range(1, targets + 1) if targets % n == 0 and _fits(logits, n, targets))
  if parts == 1:
    return _whole_sums(params, config, states, target_ids, with_gradient)
  split = lambda a: jnp.moveaxis(a.reshape(a.shape[0], parts, -1, *a.shape[2:]), 1, 0)
  sums_of = lambda part: _whole_sums(params, config, *part, with_gradient)
  sums = jax.lax.map(sums_of, (split(states), split(target_ids)))
  joined = lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], targets, *a.shape[3:])
  return jax.tree.map(lambda a: constrain_rows(joined(a)), sums)


def _fits(logits: int, parts: int, targets: int) -> bool:
  return parts == targets or logits <= parts * LOGITS_PER_DEVICE


def _whole_sums(params, config, states, target_ids, with_gradient: bool) -> _Sums:
  """The sums over the vocabulary of all these targets."""
  _, axis = lm_head.kernel_and_axis(params, config)
  states, kernel, split = lm_head.split_head(params, config, states)
  every_target = jnp.ones(target_ids.shape, bool)
  head = (kernel, axis, params["head"]["bias"] if config.head_bias else None)
  sums = _block_sums(config, head, states, (target_ids, every_target), with_gradient, split)
  return jax.tree.map(constrain_rows, sums)


def _vocabulary_block(kernel, axis: int, start, width: int):
  """Rows (axis 0) or columns start : start + width of the kernel."""
  sliced = lambda a: jax.lax.dynamic_slice_in_dim(a, start, width, axis=axis)
  return stack.map_arrays(sliced, kernel)  # codes, scales and offsets have as many rows (columns)


def _block_sums(
  config, block, states, target, with_gradient: bool, split=lambda logits: logits
) -> _Sums:
  """The sums over one block: its kernel, axis and bias, and where in it the targets are.

  split: constrains the logits.
  """
  (kernel, axis, bias), (column, in_block) = block, target
  logits = project(states, kernel, axis)
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)
  logits = split(lm_head.soft_capped(logits, config.logit_cap))
  top = logits.max(axis=-1)
  weights = jnp.exp(logits - top[..., None])
  target_logit = jnp.take_along_axis(logits, column[..., None], axis=-1)[..., 0]
  weighted = None
  if with_gradient:
    weighted = project(_times_soft_cap_slope(weights, logits, config), kernel, 1 - axis)
  total = weights.sum(axis=-1)
  return _Sums(top, total, weighted, jnp.where(in_block, target_logit, -jnp.inf))


def _times_soft_cap_slope(
  x: Float[Array, "B M _"], logits: Float[Array, "B M _"], config: DecoderConfig
) -> Float[Array, "B M _"]:
  """x times the derivative of `lm_head.soft_capped` where its result is `logits`."""
  return x if config.logit_cap is None else x * (1 - jnp.square(logits / config.logit_cap))


def _joined(a: _Sums, b: _Sums) -> _Sums:
  """The sums over the blocks of both."""
  top = jnp.maximum(a.top, b.top)
  scale_a, scale_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
  weighted = None
  if a.weighted is not None:
    weighted = a.weighted * scale_a[..., None] + b.weighted * scale_b[..., None]
  total = a.total * scale_a + b.total * scale_b
  return _Sums(top, total, weighted, jnp.maximum(a.target, b.target))
