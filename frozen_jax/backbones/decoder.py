"""The frozen decoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

The input is embeddings and the output hidden states; gradients flow to the input and never to the
weights. Matrices multiply in the dtype in which they are stored; the residual stream, norms, rotary
embeddings and softmaxes are float32. A layer is written once (`decoder_layer`) and used by the full
pass, by the prefill and by the passes after a cache: the single-token step, and the scoring of
several continuations at once. The parameters are described in `decoder_params`; the differences
between model families are all in the config.

Layers may have trained PEFT parameters (`peft`, see `peft_layers`), to which gradients flow. Only
full fine-tuning, the baseline of the frozen methods, asks for gradients of the weights themselves
(`trained=True`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import (
  attention,
  attention_inputs,
  lm_head,
  peft_layers,
  splash_attention,
  stack,
)
from frozen_jax.backbones import cache as kv_cache
from frozen_jax.backbones.activations import ACTIVATIONS as ACTIVATIONS
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_layer import SAVED_NAMES, Layer, apply_layer, norm
from frozen_jax.backbones.decoder_params import LAYER_AXES, Params
from frozen_jax.backbones.decoder_params import PARAM_AXES as PARAM_AXES
from frozen_jax.backbones.decoder_params import param_shapes as param_shapes
from frozen_jax.backbones.decoder_params import random_params as random_params
from frozen_jax.backbones.embedding import look_up
from frozen_jax.backbones.linear import project, project_trained
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain, constrain_rows, gather_weights, platform_of

Config = DecoderConfig


def embed(
  params: Params, config: DecoderConfig, tokens: Int[HostOrDevice, "*B T"], *, trained: bool = False
) -> Float[Array, "*B T D"]:
  """Token ids -> embeddings in the dtype of the table; `trained`: see `hidden`."""
  x = look_up(params["embed"]["tokens"], tokens, trained)
  if config.embed_scale == 1.0:
    return x
  return (x.astype(jnp.float32) * config.embed_scale).astype(x.dtype)


def embedding_rms(
  params: Params, config: DecoderConfig, block_size: int = 4096
) -> Float[Array, ""]:
  """The root mean square of all token embeddings, float32; computed in blocks of tokens."""
  blocks = -(-config.vocab_size // block_size)

  def add_block(total, block):
    tokens = block * block_size + jnp.arange(block_size)
    rows = embed(params, config, jnp.minimum(tokens, config.vocab_size - 1)).astype(jnp.float32)
    real = (tokens < config.vocab_size)[:, None]
    return total + jnp.where(real, jnp.square(rows), 0.0).sum(), None

  total, _ = jax.lax.scan(add_block, jnp.float32(0), jnp.arange(blocks))
  return jnp.sqrt(total / (config.vocab_size * config.width))


def hidden(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None = None,
  *,
  peft: Params | None = None,
  trained: bool = False,
  remat: str = "none",
) -> Float[Array, "B T D"]:
  """Input embeddings -> hidden states after the final norm, in the dtype of the weights.

  `mask` is 1 for real positions (None: all are real); left and right padding give the same results
  at real positions, and padded ones give finite numbers without meaning. `remat`: what each layer
  keeps for the backward pass, see `core.remat`. `peft`: trained parameters within the layers. With
  `trained` the weights get a gradient, too.
  """
  options = _PassOptions(peft, trained, stack.saved_values(remat, SAVED_NAMES), return_kv=False)
  return _full_pass(params, config, x, mask, 0, options)[0]


def prefill(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"],
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  *,
  free_slots: int | None = None,
  peft: Params | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """`hidden`, and a cache of its keys and values, after which `max_new_tokens` may follow.

  `free_slots`: how many free slots the cache has; None: `max_new_tokens`, then the same for all
  rows. A prefix in `peft` takes the first slots of the cache.
  """
  options = _PassOptions(peft, trained=False, saved=None, return_kv=True)
  states, (k, v) = _full_pass(params, config, x, mask, max_new_tokens, options)
  mask = peft_layers.prepend_prefix_mask(mask, peft)
  free_slots = max_new_tokens if free_slots is None else free_slots
  return states, kv_cache.from_prefill(k, v, mask, max_new_tokens, free_slots, config.cache)


def step(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B 1 D"],
  cache: KVCache,
  *,
  peft: Params | None = None,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
  """One more token a row: its hidden state and the longer cache; `peft` as in `prefill`.

  The caller ensures that a slot is free: otherwise the last slot is overwritten. Each layer writes
  the token's keys and values into its slots before it reads them: if it read the old slots as well,
  XLA would copy them all.
  """
  positions = cache.position[:, None]
  longer, slot = kv_cache.advance(cache)
  mask = longer.mask[:, None] > 0
  key_positions = attention_inputs.position_ids(longer.mask)
  inputs = attention_inputs.per_kind(config, positions, key_positions, mask, cache.final_length)
  stream, peft = _embed_inputs(params, config, x, positions), peft_layers.without_prefix(peft)
  layers = _step_in_loop if cache.is_stacked else _step_layer_by_layer
  stream, (k, v) = layers(params, config, stream, (cache.k, cache.v, slot), inputs, peft)
  return _final_norm(params, config, stream), longer._replace(k=k, v=v)


def _step_layer_by_layer(params, config, stream, cache, inputs, peft):
  """The layers of `step` written out one by one; they are stacked, or apart (`stack.unstack`).

  On a CPU a loop would copy each layer's weights and cache at each token.
  """
  old_keys, old_values, slot = cache
  keys, values = [], []
  for index, kind_id in enumerate(attention_inputs.kind_ids(config)):
    weights = stack.layer(params["layers"], index)
    layer_peft = jax.tree.map(lambda a, index=index: a[index], peft)
    kv = old_keys[index], old_values[index]
    stream, (k, v) = _step_layer(config, weights, layer_peft, stream, kv, slot, inputs[kind_id])
    keys.append(k)
    values.append(v)
  return stream, (tuple(keys), tuple(values))


@functools.partial(jax.jit, static_argnames="config")  # equal layers are traced once
def _step_layer(config, weights, peft, stream, old_kv, slot, inputs):
  """One layer of `_step_layer_by_layer`: the stream, and its longer keys and values."""

  def attend(q, k, v, inputs):
    slots = (
      kv_cache.write_slot(old_kv[0], k, slot, 3),
      kv_cache.write_slot(old_kv[1], v, slot, 2),
    )
    return attention.attend_to_cache(q, slots, inputs.mask, inputs.bias, config.score_cap), slots

  return apply_layer(Layer(weights, peft, project), config, stream, inputs, attend)


def _step_in_loop(params, config, stream, cache, inputs, peft):
  """The layers of `step` as a loop, which updates the one array of keys and of values in place."""
  keys, values, slot = cache

  def body(carry, scanned):
    (stream, keys, values), ((weights, kind_id, index), layer_peft) = carry, scanned

    def attend(q, k, v, inputs):
      new_keys = kv_cache.write_stacked_slot(keys, k, slot, 3, index)
      new_values = kv_cache.write_stacked_slot(values, v, slot, 2, index)
      slots = kv_cache.layer_slots(new_keys, index), kv_cache.layer_slots(new_values, index)
      mixed = attention.attend_to_cache(q, slots, inputs.mask, inputs.bias, config.score_cap)
      return mixed, (new_keys, new_values)

    layer = Layer(weights, layer_peft, project)
    kind_inputs = attention_inputs.select(inputs, kind_id)
    stream, kv = apply_layer(layer, config, stream, kind_inputs, attend)
    return (stream, *kv), None

  scanned = (params["layers"], _kind_ids(config), jnp.arange(config.layers))
  carry = (stream, keys, values)
  (stream, *kv), _ = stack.scan(body, carry, scanned, trained=peft or {})
  return stream, tuple(kv)


def hidden_after_cache(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B new D"],
  cache: KVCache,
  position_ids: Int[HostOrDevice, "B new"],
  attention_mask: Bool[HostOrDevice, "B new new"],
  *,
  peft: Params | None = None,
) -> Float[Array, "B new D"]:
  """Hidden states of new tokens that continue its cache, for scoring continuations.

  They may be several continuations of a row side by side: all are computed in one pass.
  `attention_mask` is True where a token (second axis) attends to another of them (last axis); each
  attends to all real tokens of its row's cache, too. `position_ids`: each token's distance from the
  end of the cache; 0 for the first token of a continuation. The cache is not changed and needs no
  free slots; `peft` as in `prefill`.
  """
  position_ids = cache.position[:, None] + position_ids
  key_positions = jnp.concatenate([attention_inputs.position_ids(cache.mask), position_ids], axis=1)
  cache_mask = (*attention_mask.shape[:2], cache.mask.shape[1])
  cache_mask = jnp.broadcast_to(cache.mask[:, None] > 0, cache_mask)
  mask = jnp.concatenate([cache_mask, attention_mask], axis=2)
  inputs = attention_inputs.per_kind(config, position_ids, key_positions, mask, cache.final_length)

  def body(stream, scanned):
    (weights, k_slots, v_slots, kind_id), layer_peft = scanned

    def attend(q, k, v, inputs):
      mixed = attention.attend_to_cache(
        q, (k_slots, v_slots), inputs.mask, inputs.bias, config.score_cap, (k, v)
      )
      return mixed, None

    layer = Layer(gather_weights(weights, LAYER_AXES), layer_peft, project)
    return apply_layer(layer, config, stream, attention_inputs.select(inputs, kind_id), attend)

  slots = kv_cache.by_layer(cache.k), kv_cache.by_layer(cache.v)
  scanned = (params["layers"], *slots, _kind_ids(config))
  stream = _embed_inputs(params, config, x, position_ids)
  stream, _ = stack.scan(body, stream, scanned, trained=peft_layers.without_prefix(peft))
  return _final_norm(params, config, stream)


def logits(
  params: Params,
  config: DecoderConfig,
  states: Float[HostOrDevice, "*N D"],
  *,
  trained: bool = False,
) -> Float[Array, "*N V"]:
  """Hidden states (after the final norm) -> float32 logits."""
  _, axis = lm_head.kernel_and_axis(params, config)
  states, kernel, split = lm_head.split_head(params, config, states)
  scores = (project_trained if trained else project)(states, kernel, axis)
  if config.head_bias:
    scores = scores + params["head"]["bias"].astype(jnp.float32)
  scores = split(lm_head.soft_capped(scores, config.logit_cap))
  return constrain(scores, "batch", *(None,) * (scores.ndim - 2), "vocab")


class _PassOptions(NamedTuple):
  """What a full pass over the layers computes with, saves and returns."""

  peft: Params | None
  trained: bool
  saved: stack.SavedValues | None
  return_kv: bool


def _full_pass(params, config, x, mask, max_new_tokens, options: _PassOptions):
  """Hidden states of a whole text, and the layers' keys and values if `options.return_kv`."""
  num_prefix = peft_layers.prefix_length(options.peft)
  positions, length = _text_positions(x, mask, num_prefix)
  key_positions, attention_mask = positions, None
  use_splash = not num_prefix and _has_splash(params, config)
  if not use_splash:
    attention_mask = attention.causal_mask(None if mask is None else jnp.asarray(mask), x.shape[1])
  if num_prefix:
    key_positions = jnp.pad(positions, ((0, 0), (num_prefix, 0)))
    prefix_positions = jnp.arange(num_prefix, dtype=jnp.int32)
    key_positions = key_positions.at[:, :num_prefix].set(prefix_positions)
    before = ((0, 0), (0, 0), (num_prefix, 0))
    attention_mask = jnp.pad(attention_mask, before, constant_values=True)
    attention_mask = jnp.broadcast_to(attention_mask, (x.shape[0], *attention_mask.shape[1:]))
  inputs = attention_inputs.per_kind(
    config, positions, key_positions, attention_mask, length + max_new_tokens
  )

  def body(stream, scanned):
    (weights, kind_id), peft = scanned

    def attend(q, k, v, inputs):
      if use_splash:
        real = jnp.ones(x.shape[:2], jnp.int32) if mask is None else mask
        return splash_attention.attend(q, k, v, real, config), (k, v) if options.return_kv else None
      k, v = peft_layers.prepend_prefix(k, v, peft)
      mixed = attention.attend(q, k, v, inputs.mask, inputs.bias, not num_prefix, config.score_cap)
      return mixed, (k, v) if options.return_kv else None

    weights = gather_weights(weights, LAYER_AXES)
    layer = Layer(weights, peft, project_trained if options.trained else project)
    return apply_layer(layer, config, stream, attention_inputs.select(inputs, kind_id), attend)

  stream = _embed_inputs(params, config, x, positions)
  scanned, peft = (params["layers"], _kind_ids(config)), options.peft or {}
  if options.trained:
    without_peft = lambda stream, scanned: body(stream, (scanned, {}))
    stream, kv = stack.scan_trained(without_peft, stream, scanned, options.saved)
  else:
    stream, kv = stack.scan(body, stream, scanned, options.saved, trained=peft)
  return _final_norm(params, config, stream), kv


def _has_splash(params: Params, config: DecoderConfig) -> bool:
  on_tpu = platform_of(params["final_norm"]["scale"]) == "tpu"
  return on_tpu and splash_attention.can_attend(config)


def _kind_ids(config: DecoderConfig) -> Int[Array, "L"]:
  return jnp.asarray(attention_inputs.kind_ids(config), jnp.int32)


def _text_positions(x, mask, num_prefix: int) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
  """The position ids of a text after a prefix, and the number of real tokens with the prefix."""
  if mask is None:
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    positions = num_prefix + positions
    length = jnp.full((x.shape[0],), num_prefix + x.shape[1], jnp.int32)
  else:
    positions = num_prefix + attention_inputs.position_ids(mask)
    length = jnp.asarray(num_prefix + mask.astype(jnp.int32).sum(axis=1))
  return positions, length


def _embed_inputs(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
  """Input embeddings -> the residual stream before the first layer, float32."""
  x = jnp.asarray(x).astype(jnp.float32)
  if config.embed_norm:
    x = norm(params["embed_norm"], config, x)
  if config.positions == "learned":
    rows = positions + config.position_offset
    x = x + stack.take(params["embed"]["positions"], rows).astype(jnp.float32)
  return constrain_rows(x, like=params["final_norm"]["scale"])


def _final_norm(
  params: Params, config: DecoderConfig, stream: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
  """The residual stream after the last layer -> hidden states in the dtype of the weights."""
  weights = params["final_norm"]
  return constrain_rows(norm(weights, config, stream).astype(weights["scale"].dtype))
