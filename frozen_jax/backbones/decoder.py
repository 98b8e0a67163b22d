"""The frozen decoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

Embeddings go in and hidden states come out; gradients flow through it to its input and never to
its weights. Matrices multiply in the dtype in which they are stored; the residual stream, norms,
rotary positions and softmaxes are float32. The code that computes a layer is written once
(`_layer`) and serves the full pass, the prefill and what comes behind a cache: the single-token
step, and several continuations at once. The parameters are described in `decoder_params`; what one
family does otherwise than another is in its config.

Small trained parts may stand within the layers (`inner`, see `inner_parts`): their gradients flow.
Only the rival of all frozen methods, full fine-tuning, asks for gradients of the parameters
themselves (`trained=True`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import attention, cache, inner_parts, norms, sights, stack
from frozen_jax.backbones.activations import ACTIVATIONS
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_params import PARAM_AXES as PARAM_AXES
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.decoder_params import param_shapes as param_shapes
from frozen_jax.backbones.decoder_params import random_params as random_params
from frozen_jax.backbones.experts import mixture
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.linear import product, project

Config = DecoderConfig

# What a layer keeps for its backward pass (see `checkpoint_name` here, in attention and in gated):
# everything whose recomputation would need a product with a weight matrix.
KEPT = ("attention", "gated", "middle")


def embed(
  params: Params, config: DecoderConfig, tokens: Int[Array, "B T"], *, trained: bool = False
) -> Array:
  """Token ids -> embeddings [B, T, D] in the dtype of the table; `trained`: see `hidden`."""
  table = params["embed"]["tokens"]
  found = jnp.take(table, tokens, axis=0) if trained else stack.take(table, tokens)
  if config.embed_scale == 1.0:
    return found
  return (found.astype(jnp.float32) * config.embed_scale).astype(found.dtype)


def embedding_rms(params: Params, config: DecoderConfig, at_once: int = 4096) -> Array:
  """The root mean square of all token embeddings, float32; taken in blocks of tokens."""
  blocks = -(-config.vocab_size // at_once)

  def block(total, first):
    tokens = first * at_once + jnp.arange(at_once)
    rows = embed(params, config, jnp.minimum(tokens, config.vocab_size - 1)).astype(jnp.float32)
    real = (tokens < config.vocab_size)[:, None]
    return total + jnp.where(real, jnp.square(rows), 0.0).sum(), None

  total, _ = jax.lax.scan(block, jnp.float32(0), jnp.arange(blocks))
  return jnp.sqrt(total / (config.vocab_size * config.width))


def hidden(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  mask: Int[Array, "B T"] | None = None,
  *,
  inner: Params | None = None,
  trained: bool = False,
  remat: bool = False,
) -> Float[Array, "B T D"]:
  """Input embeddings -> hidden states after the final norm, in the dtype of the weights.

  `mask` is 1 for real positions (None: all are); left and right padding give the same results at
  real positions, and padded ones give finite numbers without meaning. The backward pass keeps of
  each layer what would take a product with a weight matrix to recompute; with `remat` it keeps the
  layer's input alone and recomputes the layer. `inner` holds trained parts of the layers; with
  `trained` the parameters get a gradient, too.
  """
  how = _How(inner, trained, keep=() if remat else KEPT, caching=False)
  return _whole(params, config, x, mask, 0, how)[0]


def prefill(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  mask: Int[Array, "B T"],
  new: int | Int[Array, "B"],
  *,
  room: int | None = None,
  inner: Params | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """`hidden`, and a cache of its keys and values, for texts that come to have `new` more tokens.

  `room`: how many free slots the cache has; None: `new`, then the same for all rows. A trained
  prefix among the inner parts takes the first slots of the cache.
  """
  how = _How(inner, trained=False, keep=None, caching=True)
  stream, (k, v) = _whole(params, config, x, mask, new, how)
  mask = inner_parts.lengthened(mask, inner)
  room = new if room is None else room
  return stream, cache.from_prefix(k, v, mask, new, room, config.cache)


def step(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B 1 D"],
  kept: KVCache,
  *,
  inner: Params | None = None,
) -> tuple[Float[Array, "B 1 D"], KVCache]:
  """One more token a row: its hidden state and the longer cache; `inner` as in `prefill`.

  The caller sees to it that a slot is free: past the last one the newest slot is overwritten. The
  layers (stacked, or `stack.apart`) are written out one by one: a scan would copy each layer's
  weights and cache at each token.
  Each layer puts the token's keys and values into its slots before it reads them: were the slots
  read as they were, too, XLA would copy them all.
  """
  positions = kept.position[:, None]
  longer, slot = cache.lengthened(kept)
  visible = longer.mask[:, None] > 0
  seen = sights.of_kinds(config, positions, sights.positions(longer.mask), visible, kept.reach)
  stream, keys, values = _enter(params, config, x, positions), [], []
  small = inner_parts.within_layers(inner)
  for at, kind in enumerate(sights.kind_numbers(config)):
    weights = stack.layer(params["layers"], at)
    parts = jax.tree.map(lambda a, at=at: a[at], small)

    def look(q, k, v, sight, at=at):
      slots = cache.put(kept.k[at], k, slot, 3), cache.put(kept.v[at], v, slot, 2)
      return attention.look_back(q, slots, sight.visible, sight.bias, config.score_cap), slots

    stream, (k, v) = _layer(_Layer(weights, parts, project), config, stream, seen[kind], look)
    keys.append(k)
    values.append(v)
  return _leave(params, config, stream), longer._replace(k=tuple(keys), v=tuple(values))


def branch(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B N D"],
  kept: KVCache,
  places: Int[Array, "B N"],
  among: Bool[Array, "B N N"],
  *,
  inner: Params | None = None,
) -> Float[Array, "B N D"]:
  """Hidden states of N more tokens a row that continue its cache in several ways at once.

  Each sees all of its row's cache and those of the new tokens that `among` says (the last axis is
  what is seen); `places` says how far behind the cache it stands, from 0 on. The cache is read as
  it is, needs no free slot and is not made longer; `inner` as in `prefill`.
  """
  places = kept.position[:, None] + places
  behind = jnp.concatenate([sights.positions(kept.mask), places], axis=1)
  old = jnp.broadcast_to(kept.mask[:, None] > 0, (*among.shape[:2], kept.mask.shape[1]))
  visible = jnp.concatenate([old, among], axis=2)
  seen = sights.of_kinds(config, places, behind, visible, kept.reach)

  def body(stream, scanned):
    (weights, k_slots, v_slots, kind), small = scanned

    def look(q, k, v, sight):
      slots = k_slots, v_slots
      return attention.look_back(
        q, slots, sight.visible, sight.bias, config.score_cap, (k, v)
      ), None

    return _layer(_Layer(weights, small, project), config, stream, sights.pick(seen, kind), look)

  together = lambda each: stack.each(lambda *arrays: jnp.stack(arrays), *each)
  scanned = (
    params["layers"],
    together(kept.k),
    together(kept.v),
    jnp.asarray(sights.kind_numbers(config), jnp.int32),
  )
  stream = _enter(params, config, x, places)
  stream, _ = stack.scan(body, stream, scanned, trained=inner_parts.within_layers(inner))
  return _leave(params, config, stream)


def logits(
  params: Params, config: DecoderConfig, states: Float[Array, "... D"], *, trained: bool = False
) -> Array:
  """Hidden states (after the final norm) [..., D] -> float32 logits [..., V]."""
  scores = (product if trained else project)(states, *vocabulary(params, config))
  if config.head_bias:
    scores = scores + params["head"]["bias"].astype(jnp.float32)
  return capped(scores, config.logit_cap)


def capped(scores: Array, cap: float | None) -> Array:
  """Scores held between -cap and cap by tanh (Gemma 2); as they are without a cap."""
  return scores if cap is None else cap * jnp.tanh(scores / cap)


def vocabulary(params: Params, config: DecoderConfig) -> tuple[Array, int]:
  """The kernel of the vocabulary projection and its axis that is summed over (see `project`)."""
  return (params["embed"]["tokens"], 1) if config.tied else (params["head"]["kernel"], 0)


class _How(NamedTuple):
  """How `_whole` goes through the layers."""

  inner: Params | None
  trained: bool
  keep: tuple[str, ...] | None
  caching: bool


def _whole(params, config, x, mask, new, how: _How):
  """The pass over a whole text: hidden states, and its keys and values where `how.caching`."""
  before = inner_parts.prefix_length(how.inner)
  if mask is None:
    positions = before + jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    length = jnp.full((x.shape[0],), before + x.shape[1], jnp.int32)
  else:
    positions, length = before + sights.positions(mask), before + mask.astype(jnp.int32).sum(axis=1)
  visible = attention.causal(mask, x.shape[1])
  keys = positions
  if before:
    keys = jnp.pad(positions, ((0, 0), (before, 0)))
    keys = keys.at[:, :before].set(jnp.arange(before, dtype=jnp.int32))
    visible = jnp.pad(visible, ((0, 0), (0, 0), (before, 0)), constant_values=True)
    visible = jnp.broadcast_to(visible, (x.shape[0], *visible.shape[1:]))
  seen = sights.of_kinds(config, positions, keys, visible, length + new)

  def body(stream, scanned):
    (weights, kind), small = scanned

    def look(q, k, v, sight):
      k, v = inner_parts.behind_prefix(k, v, small)
      mixed = attention.attend(q, k, v, sight.visible, sight.bias, not before, config.score_cap)
      return mixed, (k, v) if how.caching else None

    layer = _Layer(weights, small, product if how.trained else project)
    return _layer(layer, config, stream, sights.pick(seen, kind), look)

  stream = _enter(params, config, x, positions)
  scanned, small = (
    (params["layers"], jnp.asarray(sights.kind_numbers(config), jnp.int32)),
    how.inner or {},
  )
  if how.trained:
    turn = lambda stream, scanned: body(stream, (scanned, {}))
    stream, kept = stack.scan_trained(turn, stream, scanned, how.keep)
  else:
    stream, kept = stack.scan(body, stream, scanned, how.keep, trained=small)
  return _leave(params, config, stream), kept


def _norm(weights: Params, config: DecoderConfig, x: Array) -> Array:
  if config.norm == "layer":
    return norms.layer_norm(x, weights["scale"], weights["bias"], config.norm_eps)
  return norms.rms_norm(x, weights["scale"], config.norm_eps, config.norm_offset)


def _enter(params: Params, config: DecoderConfig, x: Array, positions: Array) -> Array:
  """Input embeddings -> the residual stream, float32 [B, T, D]."""
  x = x.astype(jnp.float32)
  if config.embed_norm:
    x = _norm(params["embed_norm"], config, x)
  if config.positions == "learned":
    rows = positions + config.position_offset
    x = x + stack.take(params["embed"]["positions"], rows).astype(jnp.float32)
  return x


def _leave(params: Params, config: DecoderConfig, stream: Array) -> Array:
  weights = params["final_norm"]
  return _norm(weights, config, stream).astype(weights["scale"].dtype)


class _Layer(NamedTuple):
  """A layer's frozen weights, its trained inner parts, and the product with its matrices."""

  weights: Params
  small: Params
  product: Callable[[Array, Array], Array]

  def linear(self, path: str, x: Array) -> Array:
    """x through the linear map at "attn/q" or the like: kernel, bias, and what is trained there."""
    block, name = path.split("/")
    weights = self.weights[block][name]
    given = self.product(x, weights["kernel"])
    if "bias" in weights:
      given = given + weights["bias"].astype(jnp.float32)
    return inner_parts.added(given, x, self.small, block, name)


def _layer(
  layer: _Layer,
  config: DecoderConfig,
  x: Array,
  sight: sights.Sight,
  look: Callable[[Array, Array, Array, sights.Sight], tuple[Array, Any]],
) -> tuple[Array, Any]:
  """One layer of the residual stream x float32 [B, T, D] -> x, and what `look` keeps.

  `look(q, k, v, sight)` is the attention: it decides which keys and values beside the new ones
  (k and q rotated) count, and what is kept of them.
  """
  weights = layer.weights
  attn_input = _norm(weights["attn_norm"], config, x)
  given, kept = _attention(layer, config, attn_input, sight, look)
  if config.parallel:
    mlp_input = attn_input if config.shared_norm else _norm(weights["mlp_norm"], config, x)
    return x + given + _mlp(layer, config, mlp_input), kept
  x = x + given
  # Kept in another shape than the layer's input: XLA starts equal stacks as copies of one another.
  x = checkpoint_name(x[:, None], "middle")[:, 0]
  return x + _mlp(layer, config, _norm(weights["mlp_norm"], config, x)), kept


def _attention(layer: _Layer, config: DecoderConfig, x, sight: sights.Sight, look):
  """Normed x float32 [B, T, D] -> what attention adds, and what `look` keeps."""
  weights, dtype = layer.weights, layer.weights["attn_norm"]["scale"].dtype
  split = (*x.shape[:2], -1, config.head_dim)
  q, k, v = (layer.linear(f"attn/{name}", x).reshape(split) for name in "qkv")
  if config.qk_norm:
    normed = (("q", q), ("k", k))
    q, k = (_norm(weights["attn"][f"{name}_norm"], config, a) for name, a in normed)
  if sight.turns is not None:
    q, k = (attention.rotate(a, sight.turns, config.interleaved) for a in (q, k))
  if config.query_scale is not None:  # attention divides by the root of C
    q = q * (config.query_scale * config.head_dim**0.5)
  q, k, v = (a.astype(dtype) for a in (q, k, v))
  mixed, kept = look(q, k, v, sight)  # [B, T, H, C]
  given = layer.linear("attn/o", mixed.reshape(*x.shape[:2], -1))
  given = inner_parts.adapted(given, layer.small, "attn")
  return (_norm(weights["attn_after"], config, given) if config.norm_after else given), kept


def _mlp(layer: _Layer, config: DecoderConfig, x):
  """Normed x float32 [B, T, D] -> what the MLP adds."""
  weights, dtype = layer.weights, layer.weights["attn_norm"]["scale"].dtype
  if config.experts:
    given = mixture(weights["mlp"]["router"]["kernel"], weights["experts"], config, x, dtype)
  else:
    up = layer.linear("mlp/up", x)
    if config.gated:
      inner = gated(layer.linear("mlp/gate", x), up, config.activation, dtype)
    else:
      kept = checkpoint_name(up.astype(dtype), "gated")
      inner = ACTIVATIONS[config.activation](kept.astype(jnp.float32)).astype(dtype)
    given = layer.linear("mlp/down", inner)
  given = inner_parts.adapted(given, layer.small, "mlp")
  return _norm(weights["mlp_after"], config, given) if config.norm_after else given
