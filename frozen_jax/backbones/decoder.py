"""The frozen decoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

The input is embeddings and the output hidden states; gradients flow to the input and never to the
weights. Matrices multiply in the dtype in which they are stored; the residual stream, norms, rotary
embeddings and softmaxes are float32. A layer is written once (`decoder_layer`) and used by the full
pass, by the prefill and by the passes after a cache: the single-token step, and the scoring of
several continuations at once (`decoder_layers`, which can run some of the layers alone). The
parameters are described in `decoder_params`; the differences between model families are all in the
config.

Layers may have trained PEFT parameters (`peft`, see `peft_layers`), to which gradients flow. Only
full fine-tuning, the baseline of the frozen methods, asks for gradients of the weights themselves
(`trained=True`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention_inputs, decoder_layers, lm_head, peft_layers, stack
from frozen_jax.backbones.activations import ACTIVATIONS as ACTIVATIONS
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_layer import norm
from frozen_jax.backbones.decoder_params import PARAM_AXES as PARAM_AXES
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.decoder_params import param_shapes as param_shapes
from frozen_jax.backbones.decoder_params import random_params as random_params
from frozen_jax.backbones.embedding import look_up
from frozen_jax.backbones.linear import project, project_trained
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain, constrain_rows

Config = DecoderConfig

_SAMPLE_TOKENS = 64  # of which the size of the stream is measured


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


def stream_rms(params: Params, config: DecoderConfig, layer: int) -> Float[Array, ""]:
  """The root mean square of the residual stream before a layer, float32.

  The median over the positions of a text of tokens from all over the vocabulary: at the first
  positions of a text the stream of many models is a hundred times as large as elsewhere.
  """
  count = min(_SAMPLE_TOKENS, config.context)
  tokens = jnp.arange(count) * (config.vocab_size // count)
  stream = input_stream(params, config, embed(params, config, tokens[None]), None)
  stream, _ = decoder_layers.run(params, config, stream, None, range(layer))
  return jnp.median(jnp.sqrt(jnp.mean(jnp.square(stream), axis=-1)))


def hidden(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None = None,
  *,
  prompt: Float[HostOrDevice, "*N P D"] | None = None,
  peft: Params | None = None,
  trained: bool = False,
  remat: str = "none",
  real: Int[HostOrDevice, "C"] | None = None,
) -> Float[Array, "B T D"]:
  """Input embeddings -> hidden states after the final norm, in the dtype of the weights.

  `mask` is 1 for real positions (None: all are real); left and right padding give the same results
  at real positions, and padded ones give finite numbers without meaning. `prompt`: embeddings
  before each text, [P, D] for all rows, whose states are then computed once (`prompts`), or
  [B, P, D]. `remat`: what each layer keeps for the backward pass, see `core.remat`. `peft`: trained
  parameters within the layers. With `trained` the weights get a gradient, too. `real`: where the
  mask is 1, as in `core.types.Batch`; padding is then left out of all products.
  """
  stream = input_stream(params, config, x, mask, num_before(prompt, peft))
  stream, _ = decoder_layers.run(
    params,
    config,
    stream,
    mask,
    all_layers(config),
    prompt=prompt_stream(params, config, prompt),
    peft=peft,
    trained=trained,
    remat=remat,
    real=real,
  )
  return output_states(params, config, stream)


def prefill(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"],
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  *,
  free_slots: int | None = None,
  prompt: Float[HostOrDevice, "*N P D"] | None = None,
  peft: Params | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """`hidden`, and a cache of its keys and values, after which `max_new_tokens` may follow.

  `free_slots`: how many free slots the cache has; None: `max_new_tokens`, then the same for all
  rows. A prompt, or a prefix in `peft`, takes the first slots of the cache.
  """
  stream = input_stream(params, config, x, mask, num_before(prompt, peft))
  prompt = prompt_stream(params, config, prompt)
  layers = all_layers(config)
  stream, _, cache = decoder_layers.prefill(
    params, config, stream, mask, max_new_tokens, free_slots, layers, prompt=prompt, peft=peft
  )
  return output_states(params, config, stream), cache


def step(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B 1 D"],
  cache: KVCache,
  *,
  peft: Params | None = None,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
  """One more token a row: its hidden state and the longer cache; `peft` as in `prefill`.

  The caller ensures that a slot is free: otherwise the last slot is overwritten.
  """
  stream = input_stream_at(params, config, x, cache.position[:, None])
  stream, cache = decoder_layers.step(params, config, stream, cache, all_layers(config), peft=peft)
  return output_states(params, config, stream), cache


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
  stream = input_stream_at(params, config, x, cache.position[:, None] + position_ids)
  stream = decoder_layers.after_cache(
    params, config, stream, cache, position_ids, attention_mask, all_layers(config), peft=peft
  )
  return output_states(params, config, stream)


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


def all_layers(config: DecoderConfig) -> range:
  """The numbers of all layers, for the functions of `decoder_layers`."""
  return range(config.layers)


def input_stream(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  num_before: int = 0,
) -> Float[Array, "B T D"]:
  """Input embeddings of whole texts -> the residual stream before the first layer, float32.

  num_before: how many positions a prompt or a prefix has before the text.
  """
  positions, _ = attention_inputs.text_positions(x, mask, num_before)
  return input_stream_at(params, config, x, positions)


def prompt_stream(
  params: Params, config: DecoderConfig, prompt: Float[HostOrDevice, "*N P D"] | None
) -> Float[Array, "*N P D"] | None:
  """`input_stream` of the embeddings of a prompt, [P, D] or [B, P, D]; None for none."""
  if prompt is None:
    return None
  rows = jnp.asarray(prompt).astype(params["final_norm"]["scale"].dtype)
  stream = input_stream(params, config, rows if rows.ndim == 3 else rows[None], None)
  return stream.reshape(prompt.shape)


def num_before(prompt: Float[HostOrDevice, "*N P D"] | None, peft: Params | None) -> int:
  """How many positions stand before a text: those of a prompt and of a prefix."""
  return peft_layers.prefix_length(peft) + (0 if prompt is None else prompt.shape[-2])


def input_stream_at(
  params: Params,
  config: DecoderConfig,
  x: Float[HostOrDevice, "B T D"],
  positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
  """`input_stream` of tokens at these position ids."""
  x = jnp.asarray(x).astype(jnp.float32)
  if config.embed_norm:
    x = norm(params["embed_norm"], config, x)
  if config.positions == "learned":
    rows = positions + config.position_offset
    x = x + stack.take(params["embed"]["positions"], rows).astype(jnp.float32)
  return constrain_rows(x, like=params["final_norm"]["scale"])


def output_states(
  params: Params, config: DecoderConfig, stream: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
  """The residual stream after the last layer -> hidden states in the dtype of the weights."""
  weights = params["final_norm"]
  return constrain_rows(norm(weights, config, stream).astype(weights["scale"].dtype))
