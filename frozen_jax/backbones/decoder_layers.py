"""Running some of the frozen decoder's layers, one after the other, on the residual stream.

Every pass of `decoder` is made of these: a whole text (`run`), a text whose keys and values are
kept (`prefill`), one more token a row (`step`), and several continuations at once (`after_cache`).
`layers` is a range of layer numbers; the stream comes in as the layer before it left it, float32,
so a pass may be cut between any two layers. A cache holds the layers of its range alone.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention, attention_inputs, peft_layers, stack
from frozen_jax.backbones import cache as kv_cache
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_layer import SAVED_NAMES, Layer, apply_layer
from frozen_jax.backbones.decoder_params import LAYER_AXES, Params
from frozen_jax.backbones.full_pass import PassOptions, full_pass
from frozen_jax.backbones.linear import project
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import gather_weights


def run(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  layers: range,
  *,
  prompt: Float[Array, "*N P D"] | None = None,
  peft: Params | None = None,
  trained: bool = False,
  remat: str = "none",
  real: Int[HostOrDevice, "C"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "*_ P D"] | None]:
  """The streams of whole texts and of the prompt before them after these layers.

  prompt: its stream before them, [P, D] for all rows or [B, P, D]; None: none, before and after.
  The other options are those of `decoder.hidden`.
  """
  saved = stack.saved_values(remat, SAVED_NAMES, params["final_norm"]["scale"])
  options = PassOptions(layers, peft, trained, saved, real=real)
  result = full_pass(params, config, stream, mask, prompt, 0, options)
  return result.text, result.prompt


def prefill(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B T D"],
  mask: Int[HostOrDevice, "B T"],
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  free_slots: int | None,
  layers: range,
  *,
  prompt: Float[Array, "*N P D"] | None = None,
  peft: Params | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "*_ P D"] | None, KVCache]:
  """`run`, and a cache of these layers; the other arguments are those of `decoder.prefill`."""
  options = PassOptions(layers, peft, return_kv=True)
  text, prompt, kv, mask = full_pass(params, config, stream, mask, prompt, max_new_tokens, options)
  free_slots = max_new_tokens if free_slots is None else free_slots
  return text, prompt, kv_cache.from_prefill(*kv, mask, max_new_tokens, free_slots, config.cache)


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
  peft = peft_layers.of_layers(peft_layers.without_prefix(peft), layers)
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
  trained = peft_layers.of_layers(peft_layers.without_prefix(peft), layers)
  return stack.scan(body, stream, scanned, trained=trained, layers=layers)[0]


def _kind_ids(config: DecoderConfig) -> Int[Array, "L"]:
  return jnp.asarray(attention_inputs.kind_ids(config), jnp.int32)
