"""The frozen encoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

One parametric encoder serves BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019), ELECTRA (Clark
et al. 2020), T5 (Raffel et al. 2020) and ModernBERT (Warner et al. 2024); what sets them apart
stands in `EncoderConfig`. Every position sees every real one, but for layers of local attention.
The code that computes a layer is written once (`_layer`). Precision is that of the decoder:
matrices multiply in the dtype in which they are stored, all else is float32.

Frozen, as it is by default, gradients flow to the input embeddings alone. With `trained=True` (for
an encoder that is itself trained, as a re-ranker's is) they flow to every parameter as well. The
parameters are described in `encoder_params`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import attention, rope, stack
from frozen_jax.backbones.activations import ACTIVATIONS
from frozen_jax.backbones.config import Rope
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.encoder_params import PARAM_AXES as PARAM_AXES
from frozen_jax.backbones.encoder_params import Params
from frozen_jax.backbones.encoder_params import param_shapes as param_shapes
from frozen_jax.backbones.encoder_params import random_params as random_params
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.linear import product as product_of_trained
from frozen_jax.backbones.linear import project
from frozen_jax.backbones.norms import layer_norm, rms_norm
from frozen_jax.backbones.sights import Sight
from frozen_jax.core.errors import UserError

Config = EncoderConfig
Product = Callable[[Array, Array], Array]  # x [..., I] and a kernel [I, O] -> float32 [..., O]

# What a layer keeps for its backward pass: all whose recomputation would need a product with a
# weight matrix (see `decoder.KEPT`).
KEPT = ("attention", "gated", "middle", "end")


def embed(
  params: Params, config: EncoderConfig, tokens: Int[Array, "B T"], *, trained: bool = False
) -> Float[Array, "B T E"]:
  """Token ids [B, T] -> word embeddings alone [B, T, E], in the dtype of the table.

  A trained prompt can be put in front of them; `hidden` adds what else is embedded. With `trained`
  the table gets a gradient.
  """
  del config
  table = params["embed"]["tokens"]
  return jnp.take(table, tokens, axis=0) if trained else stack.take(table, tokens)


def hidden(
  params: Params,
  config: EncoderConfig,
  x: Float[Array, "B T E"],
  mask: Int[Array, "B T"] | None = None,
  types: Int[Array, "B T"] | None = None,
  read: Int[Array, "B P"] | None = None,
  *,
  trained: bool = False,
  remat: bool = False,
) -> Float[Array, "B T D"]:
  """Word embeddings -> the states of the last layer (normed, where a final norm exists).

  `mask` is 1 for real positions (None: all are) and `types` the token types (None: all 0; without
  meaning where the model has none). Padding stands before or behind the text: both give the same
  results at real positions, and padded ones give finite numbers without meaning. Several texts may
  stand one behind the other in a row: `mask` is then the number of each one's positions, from 1 on,
  and a text gives what it gives alone. The result has the dtype of the weights. Where `read` names
  positions, theirs alone are given [B, P, D], and the last layer computes no others.

  Gradients flow to `x`, and with `trained` to all parameters. The backward pass keeps of each layer
  what would take a product with a weight matrix to recompute; with `remat` its input alone.

  Raises:
    UserError: the text is longer than a learned table of positions.
  """
  if trained:
    product, scan = product_of_trained, stack.scan_trained
  else:
    params = jax.lax.stop_gradient(params)
    product, scan = project, stack.scan
  positions = _positions(x, mask)
  stream = _embedded(params, config, x.astype(jnp.float32), positions, types, product)
  wide, near = _sights(params, config, positions, mask)

  def body(stream, scanned, read=None):
    weights, kind = scanned
    sight = wide
    if near is not None:
      sight = jax.tree.map(lambda a, b: jnp.where(kind["local"], a, b), near, wide)
    return _layer(weights, config, stream, sight, kind.get("bare"), product, read), None

  scanned, count = (_stacked(params, config), _kinds(config)), config.layers - (read is not None)
  keep = () if remat else (None if trained else KEPT)
  stream, _ = scan(body, stream, scanned, keep=keep, count=count)
  if read is not None:
    each = jax.tree.map if trained else stack.each  # the latter has no derivative
    stream, _ = body(stream, each(lambda a: a[-1], scanned), read)
  if config.norm_first:
    stream = _norm(params["final_norm"], config, stream)
  return stream.astype(_dtype(params["layers"]))


def pool(
  params: Params,
  config: EncoderConfig,
  states: Float[Array, "B T D"],
  mask: Int[Array, "B T"] | None = None,
  *,
  trained: bool = False,
) -> Float[Array, "B D"]:
  """The states of `hidden` -> one vector a text, float32, as the model's folder says.

  Raises:
    UserError: the model does not say how (`config.pooling` is empty).
  """
  if not config.pooling:
    raise UserError(
      "this encoder does not say how to pool its states; use those that you need, or set "
      "config.pooling to mean, cls or max with dataclasses.replace"
    )
  states = states.astype(jnp.float32)
  real = jnp.ones(states.shape[:2], bool) if mask is None else mask > 0
  if config.pooling == "mean":
    count = jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    vector = jnp.where(real[..., None], states, 0).sum(axis=1) / count
  elif config.pooling == "max":
    vector = jnp.where(real[..., None], states, jnp.finfo(jnp.float32).min).max(axis=1)
  else:
    first = jnp.argmax(real, axis=1)[:, None, None]
    vector = jnp.take_along_axis(states, first, axis=1)[:, 0]
  if config.pooling == "pooler":
    weights = params["pooler"] if trained else jax.lax.stop_gradient(params["pooler"])
    vector = jnp.tanh(_linear(vector, weights, product_of_trained if trained else project))
  if config.normalise:
    square = jnp.square(vector).sum(axis=-1, keepdims=True)
    vector = vector * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  return vector


def _positions(x: Array, mask: Array | None) -> Array:
  """The place of each position within its text, int32 [B, T] or [1, T]."""
  at = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  if mask is None:
    return at
  begins = jnp.pad(mask[:, 1:] != mask[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def _embedded(
  params: Params,
  config: EncoderConfig,
  x: Array,
  positions: Array,
  types: Array | None,
  product: Product,
) -> Array:
  """Word embeddings float32 [B, T, E] -> the stream that enters the first layer [B, T, D]."""
  own = params["embed"]
  if config.positions == "learned":
    if x.shape[1] > config.context:
      raise UserError(
        f"a text of {x.shape[1]} positions is too long for this encoder, whose table has "
        f"{config.context}; shorten it"
      )
    rows = jnp.take(own["positions"], positions + config.position_offset, axis=0)
    x = x + rows.astype(jnp.float32)
  if config.types:
    kinds = jnp.zeros((1, 1), jnp.int32) if types is None else types
    x = x + jnp.take(own["types"], kinds, axis=0).astype(jnp.float32)
  if config.embed_norm:
    x = _norm(params["embed_norm"], config, x)
  return _linear(x, params["embed_project"], product) if config.projected else x


def _stacked(params: Params, config: EncoderConfig) -> Params:
  """The weights of all layers, each array [L, ...]."""
  if not config.bare_start:
    return params["layers"]
  filled = jax.tree.map(lambda a: jnp.pad(a, ((1, 0), (0, 0))), params["later"]["attn_norm"])
  return params["layers"] | {"attn_norm": filled}


def _kinds(config: EncoderConfig) -> dict[str, Array]:
  """What differs from layer to layer, each an array [L]."""
  kinds = {}
  if any(config.local):
    kinds["local"] = jnp.asarray(config.local)
  if config.bare_start:
    kinds["bare"] = jnp.arange(config.layers) == 0
  return kinds


def _sights(
  params: Params, config: EncoderConfig, positions: Array, mask: Array | None
) -> tuple[Sight, Sight | None]:
  """What the layers see of the text, and what local ones see (None: there are none)."""
  length = positions.shape[1]
  if mask is None:
    visible = jnp.ones((1, length, length), bool)
  else:
    visible = (mask[:, :, None] == mask[:, None, :]) & (mask[:, None, :] > 0)
  wide = Sight(_turns(config, config.rope, positions), visible, None)
  if config.positions == "buckets":
    wide = wide._replace(bias=_bucket_bias(params["buckets"]["table"], config, length))
  if not any(config.local):
    return wide, None
  distance = jnp.abs(positions[:, :, None] - positions[:, None, :])
  seen = visible & (distance <= config.window)
  wide = wide._replace(visible=jnp.broadcast_to(visible, seen.shape))
  return wide, Sight(_turns(config, config.local_rope, positions), seen, None)


def _turns(config: EncoderConfig, turning: Rope, positions: Array) -> tuple[Array, Array] | None:
  """The rotations of queries and keys; None where positions are of another kind."""
  if config.positions != "rotary":
    return None
  return rope.rotation(turning, config.head_dim, positions, positions.max(axis=1) + 1)


def _bucket_bias(table: Array, config: EncoderConfig, length: int) -> Array:
  """T5's bias to the scores, float32 [1, H, T, T], from its table [buckets, H]."""
  of_distance = bucket_of(np.arange(1 - length, length), config.buckets, config.bucket_distance)
  values = jnp.take(table.astype(jnp.float32), jnp.asarray(of_distance), axis=0).T  # [H, 2T-1]
  at = jnp.arange(length)
  return jnp.take(values, at[None, :] - at[:, None] + length - 1, axis=1)[None]


def bucket_of(distance: np.ndarray, buckets: int, most: int) -> np.ndarray:
  """The bucket of each distance (key less query) of T5's bidirectional attention.

  Half of the buckets is for either direction; half of those for single distances, the others grow
  in width as the logarithm up to `most` (Raffel et al. 2020, as the code of T5 has it). float32, as
  there: at the bounds of the buckets the rounding decides.
  """
  half = buckets // 2
  single = half // 2
  size = np.abs(distance)
  ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(single))
  steps = ratio / np.float32(math.log(most / single)) * np.float32(half - single)
  wide = np.minimum(single + steps.astype(np.int32), half - 1)
  return np.where(distance > 0, half, 0) + np.where(size < single, size, wide)


def _layer(
  weights: Params,
  config: EncoderConfig,
  x: Array,
  sight: Sight,
  bare: Array | None,
  product: Product,
  read: Array | None = None,
) -> Array:
  """One layer of the residual stream x float32 [B, T, D].

  `bare`, a boolean, says whether this layer lacks its first norm (None: none does). With `read` it
  gives the stream at these positions alone [B, P, D].
  """
  # Kept in another shape than the layer's input: XLA starts equal stacks as copies of one another.
  keep = lambda x, name: checkpoint_name(x[:, None], name)[:, 0]
  if config.norm_first:
    normed = _norm(weights["attn_norm"], config, x)
    normed = normed if bare is None else jnp.where(bare, x, normed)
    x = keep(_rows(x, read) + _attention(weights, config, normed, sight, product, read), "middle")
    return x + _mlp(weights, config, _norm(weights["mlp_norm"], config, x), product)
  x = keep(_rows(x, read) + _attention(weights, config, x, sight, product, read), "middle")
  x = _norm(weights["attn_norm"], config, x)
  x = keep(x + _mlp(weights, config, x, product), "end")
  return _norm(weights["mlp_norm"], config, x)


def _attention(
  weights: Params,
  config: EncoderConfig,
  x: Array,
  sight: Sight,
  product: Product,
  read: Array | None,
) -> Array:
  """x float32 [B, T, D] -> what attention adds to it, or to its rows at the positions `read`."""
  attn, dtype, own = weights["attn"], _dtype(weights), _seen_from(sight, read)
  rows = _rows(x, read)
  by_head = lambda x, name: _linear(x, attn[name], product).reshape(
    *x.shape[:2], config.heads, config.head_dim
  )
  q, k, v = by_head(rows, "q"), by_head(x, "k"), by_head(x, "v")
  if own.turns is not None:
    q, k = attention.rotate(q, own.turns), attention.rotate(k, sight.turns)
  if not config.scaled:  # attention divides by the root of C
    q = q * config.head_dim**0.5
  q, k, v = (a.astype(dtype) for a in (q, k, v))
  mixed = attention.attend(q, k, v, own.visible, own.bias)  # [B, T, H, C]
  return _linear(mixed.reshape(*rows.shape[:2], -1), attn["o"], product)


def _rows(x: Array, read: Array | None) -> Array:
  """[B, T, ...] at the positions `read` [B, P] of each row; None: all of it. One row serves all."""
  if read is None:
    return x
  x = jnp.broadcast_to(x, (read.shape[0], *x.shape[1:]))
  return jnp.take_along_axis(x, read.reshape(*read.shape, *(1,) * (x.ndim - 2)), axis=1)


def _seen_from(sight: Sight, read: Array | None) -> Sight:
  """What the positions `read` see of the whole text; None: what all do."""
  if read is None:
    return sight
  turns = sight.turns and tuple(_rows(a, read) for a in sight.turns)
  bias = sight.bias if sight.bias is None else _rows(sight.bias.swapaxes(1, 2), read).swapaxes(1, 2)
  return Sight(turns, _rows(sight.visible, read), bias)


def _mlp(weights: Params, config: EncoderConfig, x: Array, product: Product) -> Array:
  """x float32 [B, T, D] -> what the MLP adds to it."""
  mlp, dtype = weights["mlp"], _dtype(weights)
  up = _linear(x, mlp["up"], product)
  if config.gated:
    inner = gated(_linear(x, mlp["gate"], product), up, config.activation, dtype)
  else:
    kept = checkpoint_name(up.astype(dtype), "gated")
    inner = ACTIVATIONS[config.activation](kept.astype(jnp.float32)).astype(dtype)
  return _linear(inner, mlp["down"], product)


def _linear(x: Array, weights: Params, product: Product) -> Array:
  """x [..., I] through a linear map, float32 [..., O]."""
  given = product(x, weights["kernel"])
  return given + weights["bias"].astype(jnp.float32) if "bias" in weights else given


def _dtype(weights: Params) -> Any:
  """The floating type of the layers' weights; kernels may be quantised, norms never are."""
  return weights["mlp_norm"]["scale"].dtype


def _norm(weights: Params, config: EncoderConfig, x: Array) -> Array:
  if config.norm == "rms":
    return rms_norm(x, weights["scale"], config.norm_eps)
  return layer_norm(x, weights["scale"], weights.get("bias"), config.norm_eps)
