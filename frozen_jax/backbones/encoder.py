"""The frozen encoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

One parametric encoder serves BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019), ELECTRA (Clark
et al. 2020), T5 (Raffel et al. 2020) and ModernBERT (Warner et al. 2024); their differences are in
`EncoderConfig`. Attention is bidirectional, and local in some layers. A layer is written once
(`encoder_layer`). Precision is that of the decoder: matrices multiply in the dtype in which they
are stored, all else is float32.

The encoder is frozen by default: gradients flow only to the input embeddings. With `trained=True`
(for an encoder that is itself trained, such as a re-ranker's) they flow to every parameter as well.
The parameters are described in `encoder_params`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import kernels, rope, stack
from frozen_jax.backbones.attention_inputs import AttentionInputs
from frozen_jax.backbones.config import Rope
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.embedding import look_up
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.encoder_layer import (
  SAVED_NAMES,
  Attend,
  Product,
  apply_layer,
  attend_with_mask,
  linear,
  norm,
)
from frozen_jax.backbones.encoder_params import LAYER_AXES
from frozen_jax.backbones.encoder_params import PARAM_AXES as PARAM_AXES
from frozen_jax.backbones.encoder_params import param_shapes as param_shapes
from frozen_jax.backbones.encoder_params import random_params as random_params
from frozen_jax.backbones.linear import project, project_trained
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain_rows, gather_weights

Config = EncoderConfig


def embed(
  params: Params, config: EncoderConfig, tokens: Int[HostOrDevice, "B T"], *, trained: bool = False
) -> Float[Array, "B T Ee"]:
  """Token ids -> word embeddings, in the dtype of the table.

  A trained prompt can be put before them; `hidden` adds the other embeddings. With `trained` the
  table gets a gradient.
  """
  del config
  return look_up(params["embed"]["tokens"], tokens, trained)


def hidden(
  params: Params,
  config: EncoderConfig,
  x: Float[HostOrDevice, "B T Ee"],
  mask: Int[HostOrDevice, "B T"] | None = None,
  types: Int[HostOrDevice, "B T"] | None = None,
  output_positions: Int[HostOrDevice, "B O"] | None = None,
  *,
  trained: bool = False,
  remat: str = "none",
) -> Float[Array, "B T De"] | Float[Array, "B O De"]:
  """Word embeddings -> the states of the last layer (normed if there is a final norm).

  `mask` is 1 for real positions (None: all are real) and `types` the token types (None: all 0;
  ignored if the model has none). Padding may be on either side: results at real positions are the
  same, and padded positions give finite numbers without meaning. Several texts may share a row, one
  after the other: `mask` then numbers their positions, from 1 on for the first text, and each text
  gives the same result as in a row of its own. The result has the dtype of the weights. With
  `output_positions` only the states at these O positions are returned, and the last layer computes
  no others.

  Gradients flow to `x`, and with `trained` to all parameters. `remat`: what each layer keeps for
  the backward pass, see `core.remat`; "none" of a trained encoder keeps everything.

  Raises:
    UserError: the text is longer than a learned table of positions.
  """
  if trained:
    product, scan = project_trained, stack.scan_trained
  else:
    params = jax.lax.stop_gradient(params)
    product, scan = project, stack.scan
  positions = _positions(x, mask)
  stream = _embed_inputs(params, config, x, positions, types, product)
  global_inputs, local_inputs = _attention_inputs(params, config, positions, mask)
  like = params["layers"]["mlp_norm"]["scale"]
  kernel = kernels.of_encoder(config, like, x.shape[1])

  def body(stream, scanned, output_positions=None):
    weights, flags = scanned
    weights = gather_weights(weights, LAYER_AXES)
    inputs = _select_inputs(global_inputs, local_inputs, flags)
    attend = attend_with_mask
    if kernel is not None and output_positions is None:
      attend = _attend_by(kernel, jnp.ones(x.shape[:2], jnp.int32) if mask is None else mask, flags)
    skip_norm = flags.get("skip_norm")
    layer = (weights, config, stream, inputs, attend, skip_norm, product, output_positions)
    return apply_layer(*layer), None

  scanned = (_stacked_layers(params, config), _layer_flags(config))
  layers = range(config.layers - (output_positions is not None))
  keep_all = trained and remat == "none"
  saved = None if keep_all else stack.saved_values(remat, SAVED_NAMES, like)
  stream, _ = scan(body, stream, scanned, saved=saved, layers=layers)
  if output_positions is not None:
    map_arrays = jax.tree.map if trained else stack.map_arrays  # the latter has no derivative
    stream, _ = body(stream, map_arrays(lambda a: a[-1], scanned), jnp.asarray(output_positions))
  if config.norm_first:
    stream = norm(params["final_norm"], config, stream)
  return constrain_rows(stream.astype(like.dtype))


def pool(
  config: EncoderConfig,
  states: Float[HostOrDevice, "B T De"],
  mask: Int[HostOrDevice, "B T"] | None = None,
) -> Float[Array, "B width"]:
  """The states of `hidden` -> one vector a text, float32, as the model's folder defines it.

  Of De numbers, or of the first `config.vector_width`.

  Raises:
    UserError: the config has no pooling.
  """
  if not config.pooling:
    raise UserError(
      "this encoder has no pooling of its states; use the states themselves, or set config.pooling"
      " to mean, cls or max with dataclasses.replace"
    )
  states = states.astype(jnp.float32)
  real = jnp.ones(states.shape[:2], bool) if mask is None else mask > 0
  if config.pooling in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
    weights = real.astype(jnp.float32)
    if config.pooling == "weightedmean":
      weights = weights * jnp.cumsum(weights, axis=1)
    count = jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    count = jnp.sqrt(count) if config.pooling == "mean_sqrt_len_tokens" else count
    vector = jnp.where(real[..., None], states * weights[..., None], 0).sum(axis=1) / count
  elif config.pooling == "max":
    vector = jnp.where(real[..., None], states, jnp.finfo(jnp.float32).min).max(axis=1)
  else:
    if config.pooling == "lasttoken":
      position = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    else:
      position = jnp.argmax(real, axis=1)
    vector = jnp.take_along_axis(states, position[:, None, None], axis=1)[:, 0]
  if config.normalise:
    square = jnp.square(vector).sum(axis=-1, keepdims=True)
    vector = vector * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  return vector[:, : config.vector_width or None]


def _positions(
  x: Float[HostOrDevice, "B T Ee"], mask: Int[HostOrDevice, "B T"] | None
) -> Int[Array, "#B T"]:
  """The position of each token within its text, int32; one row if there is no mask."""
  index = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  if mask is None:
    return index
  is_start = jnp.pad(mask[:, 1:] != mask[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  return index - jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)


def _embed_inputs(
  params: Params,
  config: EncoderConfig,
  x: Float[HostOrDevice, "B T Ee"],
  positions: Int[Array, "#B T"],
  types: Int[HostOrDevice, "B T"] | None,
  product: Product,
) -> Float[Array, "B T De"]:
  """Word embeddings -> the residual stream before the first layer, float32."""
  x, tables = jnp.asarray(x).astype(jnp.float32), params["embed"]
  if config.positions == "learned":
    if x.shape[1] > config.context:
      raise UserError(
        f"a text of {x.shape[1]} positions is too long for this encoder, whose table has "
        f"{config.context}; shorten it"
      )
    rows = jnp.take(tables["positions"], positions + config.position_offset, axis=0)
    x = x + rows.astype(jnp.float32)
  if config.types:
    types = jnp.zeros((1, 1), jnp.int32) if types is None else types
    x = x + jnp.take(tables["types"], types, axis=0).astype(jnp.float32)
  if config.embed_norm:
    x = norm(params["embed_norm"], config, x)
  x = linear(x, params["embed_project"], product) if config.has_projection else x
  return constrain_rows(x, like=params["layers"]["mlp_norm"]["scale"])


def _stacked_layers(params: Params, config: EncoderConfig) -> Params:
  """The weights of all layers, each array [L, ...]; a skipped norm is filled with zeros."""
  if not config.skip_first_norm:
    return params["layers"]
  padded = jax.tree.map(lambda a: jnp.pad(a, ((1, 0), (0, 0))), params["later"]["attn_norm"])
  return params["layers"] | {"attn_norm": padded}


def _select_inputs(
  global_inputs: AttentionInputs, local_inputs: AttentionInputs | None, flags: dict[str, Array]
) -> AttentionInputs:
  """Those of a layer, which a flag says to be local or global."""
  if local_inputs is None:
    return global_inputs
  choose = lambda local, other: jnp.where(flags["local"], local, other)
  return jax.tree.map(choose, local_inputs, global_inputs)


def _attend_by(
  kernel: kernels.Kernel, segments: Int[HostOrDevice, "B T"], flags: dict[str, Array]
) -> Attend:
  """Attention of a layer by a kernel, within each text of a row."""
  kind_id = jnp.asarray(flags.get("local", 0), jnp.int32)
  return lambda q, k, v, _: kernel.attend(q, k, v, segments, kind_id)


def _layer_flags(config: EncoderConfig) -> dict[str, Bool[Array, "L"]]:
  """What differs from layer to layer: whether attention is local, and a norm skipped."""
  flags = {}
  if any(config.local):
    flags["local"] = jnp.asarray(config.local)
  if config.skip_first_norm:
    flags["skip_norm"] = jnp.arange(config.layers) == 0
  return flags


def _attention_inputs(
  params: Params,
  config: EncoderConfig,
  positions: Int[Array, "#B T"],
  mask: Int[HostOrDevice, "B T"] | None,
) -> tuple[AttentionInputs, AttentionInputs | None]:
  """The attention inputs of global layers, and of local ones (None: there are none)."""
  length = positions.shape[1]
  if mask is None:
    global_mask = jnp.ones((1, length, length), bool)
  else:
    global_mask = (mask[:, :, None] == mask[:, None, :]) & (mask[:, None, :] > 0)
  cos_sin = _cos_sin(config, config.rope, positions)
  bias = None
  if config.positions == "buckets":
    bias = _bucket_bias(params["buckets"]["table"], config, length)
  if not any(config.local):
    return AttentionInputs(cos_sin, jnp.asarray(global_mask), bias), None
  distance = jnp.abs(positions[:, :, None] - positions[:, None, :])
  local_mask = global_mask & (distance <= config.window)
  global_mask = jnp.broadcast_to(global_mask, local_mask.shape)
  local_cos_sin = _cos_sin(config, config.local_rope, positions)
  return AttentionInputs(cos_sin, global_mask, bias), AttentionInputs(
    local_cos_sin, local_mask, None
  )


def _cos_sin(
  config: EncoderConfig, kind_rope: Rope, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T r"], Float[Array, "B T r"]] | None:
  """The rotation of queries and keys; None if positions are of another kind."""
  if config.positions != "rotary":
    return None
  return rope.rotation(kind_rope, config.head_dim, positions, positions.max(axis=1) + 1)


def _bucket_bias(
  table: Float[Array, "buckets H"], config: EncoderConfig, length: int
) -> Float[Array, "1 H {length} {length}"]:
  """T5's bias to the scores, float32."""
  distances = np.arange(1 - length, length)
  buckets = relative_position_bucket(distances, config.buckets, config.bucket_distance)
  biases = jnp.take(table.astype(jnp.float32), jnp.asarray(buckets), axis=0).T  # [H, 2T-1]
  index = jnp.arange(length)
  return jnp.take(biases, index[None, :] - index[:, None] + length - 1, axis=1)[None]


def relative_position_bucket(
  distance: Int[np.ndarray, "*N"], num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*N"]:
  """The bucket of each distance (key minus query) in T5's bidirectional attention.

  Half of the buckets is for either direction; half of those for single distances, while the others
  grow logarithmically up to `max_distance` (Raffel et al. 2020, and T5's code). float32, as there,
  because rounding decides at the bounds of the buckets.
  """
  half = num_buckets // 2
  single = half // 2
  size = np.abs(distance)
  ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(single))
  steps = ratio / np.float32(math.log(max_distance / single)) * np.float32(half - single)
  logarithmic = np.minimum(single + steps.astype(np.int32), half - 1)
  return np.where(distance > 0, half, 0) + np.where(size < single, size, logarithmic)
