"""A pass of whole texts over some layers of the frozen decoder, after a prompt or a prefix.

`decoder_layers.run` and `.prefill` are this pass.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import attention, attention_inputs, kernels, peft_layers, prompts, stack
from frozen_jax.backbones.attention_inputs import AttentionInputs
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_layer import Layer, apply_layer
from frozen_jax.backbones.decoder_params import LAYER_AXES, Params
from frozen_jax.backbones.joined_rows import JoinedRows, joined_rows, real_positions
from frozen_jax.backbones.linear import project, project_trained
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import gather_weights, mesh_of


class PassOptions(NamedTuple):
  """What a pass over whole texts computes with, saves and returns.

  real: the real positions of the texts, where padding is to be left out (`core.types.Batch`).
  """

  layers: range
  peft: Params | None = None
  trained: bool = False
  saved: stack.SavedValues | None = None
  return_kv: bool = False
  real: Int[HostOrDevice, "C"] | None = None


class PassResult(NamedTuple):
  """Of a pass. text, prompt: their streams after its layers; kv: keys and values of each layer, of
  prefix or prompt and text, which may be in another order than the text; mask: of these."""

  text: Float[Array, "B T D"]
  prompt: Float[Array, "*N P D"] | None
  kv: Any
  mask: Int[Array, "B S"]


def full_pass(
  params: Params,
  config: DecoderConfig,
  stream: Float[Array, "B T D"],
  mask: Int[HostOrDevice, "B T"] | None,
  prompt: Float[Array, "*N P D"] | None,
  max_new_tokens: int | Int[HostOrDevice, ""] | Int[HostOrDevice, "B"],
  options: PassOptions,
) -> PassResult:
  """The streams of a prompt, [P, D] for all rows or [B, P, D], and of the texts after it.

  max_new_tokens: how many may follow, which rotary embeddings depend on.
  """
  like, has_prefix = params["final_norm"]["scale"], peft_layers.prefix_length(options.peft) > 0
  if mask is None or mesh_of(like) is not None:
    options = options._replace(real=None)
  if prompt is None:
    return _pass(params, config, stream, mask, None, max_new_tokens, options)
  if not has_prefix and prompts.can_share(config, prompt, stream.shape[0], like):
    return _pass(params, config, stream, mask, prompt[None], max_new_tokens, options)
  (rows, _), length = stream.shape[:2], prompt.shape[-2]
  mask = jnp.ones(stream.shape[:2], jnp.int32) if mask is None else mask
  joined, joined_mask = prompts.prepend(prompt, stream, mask)
  if options.real is not None:
    size = options.real.shape[0] + rows * length
    options = options._replace(real=real_positions(joined_mask, size))
  result = _pass(params, config, joined, joined_mask, None, max_new_tokens, options)
  return result._replace(text=result.text[:, length:], prompt=result.text[:, :length])


def _pass(params, config, stream, mask, shared, max_new_tokens, options) -> PassResult:
  """`full_pass` of texts after a prompt [1, P, D] that the rows share, or after none."""
  num_shared, real = 0 if shared is None else shared.shape[1], options.real
  num_before = peft_layers.prefix_length(options.peft) + num_shared
  kernel = kernels.of_decoder(config, params["final_norm"]["scale"], num_before + stream.shape[1])
  given_order = None
  if kernel is not None and kernel.needs_order and mask is not None:
    order, given_order = kernels.padding_last(mask)
    stream, mask = kernels.reorder(stream, order), kernels.reorder(mask, order)
    real = None if real is None else real_positions(mask, real.shape[0])
  texts = attention_of = _texts(config, stream, mask, num_before, max_new_tokens, kernel)
  if shared is not None or real is not None:
    layout = joined_rows(num_shared, texts.segments[:, num_before:], real)
    stream, attention_of = layout.join(shared, stream), _joined(texts, layout)

  def body(stream, scanned):
    (weights, kind_id), peft = scanned

    def attend(q, k, v, inputs):
      mixed, kv = attention_of.attend(q, k, v, inputs, peft.get("prefix"), kind_id)
      return mixed, kv if options.return_kv else None

    weights = gather_weights(weights, LAYER_AXES)
    layer = Layer(weights, peft, project_trained if options.trained else project)
    inputs = attention_inputs.select(attention_of.inputs, kind_id)
    return apply_layer(layer, config, stream, inputs, attend)

  stream, kv = _scan(params, config, body, stream, options)
  if attention_of is not texts:
    shared, stream = layout.split(stream)
    shared = None if shared is None else shared[0]
  if given_order is not None:
    stream = kernels.reorder(stream, given_order)
  return PassResult(stream, shared, kv, texts.segments)


class _Texts(NamedTuple):
  """The attention of whole texts, which may have keys and values before them in each layer.

  segments: the mask of all keys, those before the text included. inputs: of each kind of layer.
  """

  config: DecoderConfig
  kernel: kernels.Kernel | None
  segments: Int[Array, "B S"]
  inputs: tuple[AttentionInputs, ...]

  def attend(
    self,
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    inputs: AttentionInputs,
    before: dict[str, Float[Array, "P K C"]] | None,
    kind_id: Int[Array, ""],
  ) -> tuple[Float[Array, "B T H C"], tuple[Float[Array, "B S K C"], Float[Array, "B S K C"]]]:
    """The result, and all keys and values; before: "k" and "v" of what is before each text."""
    k, v = peft_layers.prepend_prefix(k, v, before)
    if self.kernel is not None:
      return self.kernel.attend(q, k, v, self.segments, kind_id), (k, v)
    cap = self.config.score_cap
    return attention.attend(q, k, v, inputs.mask, inputs.bias, True, cap), (k, v)


class _Joined(NamedTuple):
  """The attention of texts that are joined to one row, after a prompt that they share or none.

  inputs: of the texts, with the rotations of all; of_prompt: of the prompt, of each kind of layer.
  """

  texts: _Texts
  layout: JoinedRows
  inputs: tuple[AttentionInputs, ...]
  of_prompt: tuple[AttentionInputs, ...]

  def attend(
    self,
    q: Float[Array, "1 N H C"],
    k: Float[Array, "1 N K C"],
    v: Float[Array, "1 N K C"],
    inputs: AttentionInputs,
    before: dict[str, Float[Array, "P K C"]] | None,
    kind_id: Int[Array, ""],
  ) -> tuple[Float[Array, "1 N H C"], tuple[Float[Array, "B S K C"], Float[Array, "B S K C"]]]:
    """See `_Texts.attend`; the keys and values of a prompt are before the texts."""
    of_prompt, of_texts = zip(*map(self.layout.split, (q, k, v)), strict=True)
    mixed_prompt = None
    if self.layout.num_prompt:
      _, mask, bias = attention_inputs.select(self.of_prompt, kind_id)
      cap = self.texts.config.score_cap
      mixed_prompt = attention.attend(*of_prompt, mask, bias, True, cap)
      before = {"k": of_prompt[1][0], "v": of_prompt[2][0]}
    mixed, kv = self.texts.attend(*of_texts, inputs, before, kind_id)
    return self.layout.join(mixed_prompt, mixed), kv


def _texts(config, stream, mask, num_before: int, max_new_tokens, kernel) -> _Texts:
  """The attention of these texts after `num_before` positions."""
  positions, length = attention_inputs.text_positions(stream, mask, num_before)
  real = jnp.ones(stream.shape[:2], jnp.int32) if mask is None else jnp.asarray(mask)
  key_positions, attention_mask = positions, None
  if kernel is None:
    attention_mask = attention.causal_mask(None if mask is None else real, stream.shape[1])
    if num_before:
      before = jnp.broadcast_to(jnp.arange(num_before), (positions.shape[0], num_before))
      key_positions = jnp.concatenate([before, positions], axis=1)
      attention_mask = jnp.pad(
        attention_mask, ((0, 0), (0, 0), (num_before, 0)), constant_values=True
      )
  inputs = attention_inputs.per_kind(
    config, positions, key_positions, attention_mask, length + max_new_tokens
  )
  return _Texts(config, kernel, peft_layers.prepend_mask(real, num_before), inputs)


def _joined(texts: _Texts, layout: JoinedRows) -> _Joined:
  """The attention of these texts, and of the prompt before them, if there is one."""
  length = layout.num_prompt
  positions, causal = jnp.arange(length)[None], attention.causal_mask(None, length)
  of_prompt = attention_inputs.per_kind(
    texts.config, positions, positions, causal, jnp.asarray([length])
  )

  def joined(prompt: AttentionInputs, text: AttentionInputs) -> AttentionInputs:
    if text.cos_sin is None:
      return text
    return text._replace(cos_sin=tuple(map(layout.join, prompt.cos_sin, text.cos_sin)))

  return _Joined(texts, layout, tuple(map(joined, of_prompt, texts.inputs)), of_prompt)


def _scan(params, config, body, stream, options: PassOptions):
  """The stream after the layers, and what each of them returned besides."""
  scanned = (params["layers"], jnp.asarray(attention_inputs.kind_ids(config), jnp.int32))
  layers, saved = options.layers, options.saved
  if options.trained:
    without_peft = lambda stream, scanned: body(stream, (scanned, {}))
    return stack.scan_trained(without_peft, stream, scanned, saved, layers)
  peft = peft_layers.of_layers(options.peft, layers)
  return stack.scan(body, stream, scanned, saved, trained=peft, layers=layers)
