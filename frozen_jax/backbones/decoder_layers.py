"""Running some of the frozen decoder's layers, one after the other, on the residual stream.

Every pass of `decoder` is made of these: a whole text (`run`), a text whose keys and values are
kept (`prefill`), one more token a row (`step`), and several continuations at once (`after_cache`).
`layers` is a range of layer numbers; the stream comes in as the layer before it left it, float32,
so a pass may be cut between any two layers. A cache holds the layers of its range alone.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention, attention_inputs, kernels, peft_layers, stack
from frozen_jax.backbones import cache as kv_cache
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_layer import SAVED_NAMES, Layer, apply_layer
from frozen_jax.backbones.decoder_params import LAYER_AXES, Params
from frozen_jax.backbones.linear import project, project_trained
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import gather_weights


class _PassOptions(NamedTuple):
  """What a pass over whole texts computes with, saves and returns."""

  layers: range
  peft: Params | None
  trained: bool
  saved: stack.SavedValues | None
  return_kv: bool


def run(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  layers: range,
  *,
  peft: Params | None = None,
  trained: bool = False,
  remat: str = "none",
) -> Float[Array, "B T D"]:
  """The stream of whole texts after these layers; the options are those of `decoder.hidden`."""
  saved = stack.saved_values(remat, SAVED_NAMES, params["final_norm"]["scale"])
  options = _PassOptions(layers, peft, trained, saved, return_kv=False)
  return _full_pass(params, config, stream, mask, 0, options)[0]


def prefill(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B T D"],
  mask: Int[HostOrDevice, "B T"],
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  free_slots: int | None,
  layers: range,
  *,
  peft: Params | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """`run`, and a cache of these layers; the other arguments are those of `decoder.prefill`."""
  options = _PassOptions(layers, peft, trained=False, saved=None, return_kv=True)
  stream, (k, v), mask = _full_pass(params, config, stream, mask, max_new_tokens, options)
  mask = peft_layers.prepend_prefix_mask(mask, peft)
  free_slots = max_new_tokens if free_slots is None else free_slots
  return stream, kv_cache.from_prefill(k, v, mask, max_new_tokens, free_slots, config.cache)


def step(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B 1 D"],
  cache: KVCache,
  layers: range,
  *,
  peft: Params | None = None,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
  """The stream of one more token a row after these layers, and their longer cache.

  The caller ensures that a slot is free: otherwise the last slot is overwritten. Each layer writes
  the token's keys and values into its slots before it reads them: if it read the old slots as well,
  XLA would copy them all.
  """
  longer, slot = kv_cache.advance(cache)
  mask = longer.mask[:, None] > 0
  key_positions = attention_inputs.position_ids(longer.mask)
  inputs = attention_inputs.per_kind(
    config, cache.position[:, None], key_positions, mask, cache.final_length
  )
  peft = _peft_of(peft_layers.without_prefix(peft), layers)
  run_step = _step_in_loop if cache.is_stacked else _step_layer_by_layer
  stream, (k, v) = run_step(params, config, stream, (cache.k, cache.v, slot), inputs, peft, layers)
  return stream, longer._replace(k=k, v=v)


def _step_layer_by_layer(params, config, stream, cache, inputs, peft, layers):
  """The layers of `step` written out one by one; they are stacked, or apart (`stack.unstack`).

  On a CPU a loop would copy each layer's weights and cache at each token.
  """
  old_keys, old_values, slot = cache
  keys, values, kind_ids = [], [], attention_inputs.kind_ids(config)
  for at, index in enumerate(layers):
    weights = stack.layer(params["layers"], index)
    layer_peft = jax.tree.map(lambda a, at=at: a[at], peft)
    kv, layer_inputs = (old_keys[at], old_values[at]), inputs[kind_ids[index]]
    stream, (k, v) = _step_layer(config, weights, layer_peft, stream, kv, slot, layer_inputs)
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


def _step_in_loop(params, config, stream, cache, inputs, peft, layers):
  """The layers of `step` as a loop, which updates the one array of keys and of values in place."""
  keys, values, slot = cache

  def body(carry, scanned):
    (stream, keys, values), ((weights, kind_id, index), layer_peft) = carry, scanned
    at = index - layers.start

    def attend(q, k, v, inputs):
      new_keys = kv_cache.write_stacked_slot(keys, k, slot, 3, at)
      new_values = kv_cache.write_stacked_slot(values, v, slot, 2, at)
      slots = kv_cache.layer_slots(new_keys, at), kv_cache.layer_slots(new_values, at)
      mixed = attention.attend_to_cache(q, slots, inputs.mask, inputs.bias, config.score_cap)
      return mixed, (new_keys, new_values)

    layer = Layer(weights, layer_peft, project)
    kind_inputs = attention_inputs.select(inputs, kind_id)
    stream, kv = apply_layer(layer, config, stream, kind_inputs, attend)
    return (stream, *kv), None

  scanned = (params["layers"], _kind_ids(config), jnp.arange(config.layers))
  carry = (stream, keys, values)
  (stream, *kv), _ = stack.scan(body, carry, scanned, trained=peft, layers=layers)
  return stream, tuple(kv)


def after_cache(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B N D"],
  cache: KVCache,
  position_ids: Int[HostOrDevice, "B N"],
  attention_mask: Bool[HostOrDevice, "B N N"],
  layers: range,
  *,
  peft: Params | None = None,
) -> Float[Array, "B N D"]:
  """The stream of N tokens a row that continue these layers' cache.

  See `decoder.hidden_after_cache`, whose arguments these are.
  """
  position_ids = cache.position[:, None] + position_ids
  key_positions = jnp.concatenate([attention_inputs.position_ids(cache.mask), position_ids], axis=1)
  cache_mask = (*attention_mask.shape[:2], cache.mask.shape[1])
  cache_mask = jnp.broadcast_to(cache.mask[:, None] > 0, cache_mask)
  mask = jnp.concatenate([cache_mask, attention_mask], axis=2)
  inputs = attention_inputs.per_kind(config, position_ids, key_positions, mask, cache.final_length)
  slots = kv_cache.by_layer(cache.k), kv_cache.by_layer(cache.v)

  def body(stream, scanned):
    (weights, kind_id, index), layer_peft = scanned
    k_slots, v_slots = stack.slices_at(slots, index - layers.start)

    def attend(q, k, v, inputs):
      mixed = attention.attend_to_cache(
        q, (k_slots, v_slots), inputs.mask, inputs.bias, config.score_cap, (k, v)
      )
      return mixed, None

    layer = Layer(gather_weights(weights, LAYER_AXES), layer_peft, project)
    return apply_layer(layer, config, stream, attention_inputs.select(inputs, kind_id), attend)

  scanned = (params["layers"], _kind_ids(config), jnp.arange(config.layers))
  trained = _peft_of(peft_layers.without_prefix(peft), layers)
  return stack.scan(body, stream, scanned, trained=trained, layers=layers)[0]


def _full_pass(params, config, stream, mask, max_new_tokens, options: _PassOptions):
  """The stream of whole texts after the layers; keys and values if `return_kv`, and their mask.

  These are of the prefix and the text, and may be in another order than the text.
  """
  num_prefix = peft_layers.prefix_length(options.peft)
  like = params["final_norm"]["scale"]
  kernel = kernels.of_decoder(config, like, num_prefix + stream.shape[1])
  given_order = None
  if kernel is not None and kernel.needs_order and mask is not None:
    order, given_order = kernels.padding_last(mask)
    stream, mask = kernels.reorder(stream, order), kernels.reorder(mask, order)
  positions, length = text_positions(stream, mask, num_prefix)
  if kernel is None:
    key_positions, attention_mask = _attended(stream, mask, positions, num_prefix)
  else:
    key_positions, attention_mask = positions, None
    segments = jnp.ones(stream.shape[:2], jnp.int32) if mask is None else mask
    segments = peft_layers.prepend_prefix_mask(segments, options.peft)
  inputs = attention_inputs.per_kind(
    config, positions, key_positions, attention_mask, length + max_new_tokens
  )

  def body(stream, scanned):
    (weights, kind_id), peft = scanned

    def attend(q, k, v, inputs):
      k, v = peft_layers.prepend_prefix(k, v, peft)
      if kernel is not None:
        mixed = kernel.attend(q, k, v, segments, kind_id)
      else:
        causal = not num_prefix
        mixed = attention.attend(q, k, v, inputs.mask, inputs.bias, causal, config.score_cap)
      return mixed, (k, v) if options.return_kv else None

    weights = gather_weights(weights, LAYER_AXES)
    layer = Layer(weights, peft, project_trained if options.trained else project)
    return apply_layer(layer, config, stream, attention_inputs.select(inputs, kind_id), attend)

  scanned, peft = (params["layers"], _kind_ids(config)), _peft_of(options.peft, options.layers)
  if options.trained:
    without_peft = lambda stream, scanned: body(stream, (scanned, {}))
    stream, kv = stack.scan_trained(without_peft, stream, scanned, options.saved, options.layers)
  else:
    saved = options.saved
    stream, kv = stack.scan(body, stream, scanned, saved, trained=peft, layers=options.layers)
  return stream if given_order is None else kernels.reorder(stream, given_order), kv, mask


def _attended(stream, mask, positions, num_prefix: int):
  """The positions of the keys of a text after a prefix, and which keys a query attends to."""
  real = None if mask is None else jnp.asarray(mask)
  attention_mask = attention.causal_mask(real, stream.shape[1])
  if not num_prefix:
    return positions, attention_mask
  key_positions = jnp.pad(positions, ((0, 0), (num_prefix, 0)))
  prefix_positions = jnp.arange(num_prefix, dtype=jnp.int32)
  key_positions = key_positions.at[:, :num_prefix].set(prefix_positions)
  before = ((0, 0), (0, 0), (num_prefix, 0))
  attention_mask = jnp.pad(attention_mask, before, constant_values=True)
  shape = (stream.shape[0], *attention_mask.shape[1:])
  return key_positions, jnp.broadcast_to(attention_mask, shape)


def _peft_of(peft: Params | None, layers: range) -> Params:
  """The trained parameters within these layers."""
  return jax.tree.map(lambda a: a[layers.start : layers.stop], peft or {})


def _kind_ids(config: DecoderConfig) -> Int[Array, "L"]:
  return jnp.asarray(attention_inputs.kind_ids(config), jnp.int32)


def text_positions(
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  num_prefix: int = 0,
) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
  """The position ids of a text after a prefix, and the number of real tokens with the prefix."""
  if mask is None:
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    positions = num_prefix + positions
    length = jnp.full((x.shape[0],), num_prefix + x.shape[1], jnp.int32)
  else:
    positions = num_prefix + attention_inputs.position_ids(mask)
    length = jnp.asarray(num_prefix + mask.astype(jnp.int32).sum(axis=1))
  return positions, length
