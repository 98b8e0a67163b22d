"""The frozen decoder: pure functions over a dict pytree whose layers are stacked for `lax.scan`.

Embeddings go in and hidden states come out; gradients flow through it to its input and never to
its weights. Matrices multiply in the dtype in which they are stored; the residual stream, norms,
rotary positions and softmaxes are float32. The code that computes a layer is written once
(`_layer`) and serves the full pass, the prefill and the single-token step.

Paths of the tree: embed/tokens [V, D]; layers/attn_norm/scale [L, D]; layers/attn/q/kernel
[L, D, H*C]; layers/attn/{k,v}/kernel [L, D, K*C]; layers/attn/o/kernel [L, H*C, D];
layers/mlp_norm/scale [L, D]; layers/mlp/{gate,up}/kernel [L, D, F]; layers/mlp/down/kernel
[L, F, D]; final_norm/scale [D]; head/kernel [D, V] only where the head is not tied.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import attention, cache, stack
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.gated import ACTIVATIONS as ACTIVATIONS
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.linear import project
from frozen_jax.core import paths

Params = dict[str, Any]

# What a layer keeps for its backward pass (see `checkpoint_name` here, in attention and in gated):
# everything whose recomputation would need a product with a weight matrix.
KEPT = ("attention", "gated", "middle")

# Regular expressions on a parameter's whole path -> the logical name of each of its axes.
PARAM_AXES: dict[str, tuple[str, ...]] = {
  r"embed/tokens": ("vocab", "embed"),
  r"layers/(attn|mlp)_norm/scale": ("layers", "embed"),
  r"layers/attn/q/kernel": ("layers", "embed", "heads"),
  r"layers/attn/[kv]/kernel": ("layers", "embed", "kv"),
  r"layers/attn/o/kernel": ("layers", "heads", "embed"),
  r"layers/mlp/(gate|up)/kernel": ("layers", "embed", "mlp"),
  r"layers/mlp/down/kernel": ("layers", "mlp", "embed"),
  r"final_norm/scale": ("embed",),
  r"head/kernel": ("embed", "vocab"),
}


def param_shapes(config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
  """The tree of `jax.ShapeDtypeStruct` that a decoder of this config must have."""
  layers, width, mlp = config.layers, config.width, config.mlp_width
  queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
  shapes = {
    "embed/tokens": (config.vocab_size, width),
    "layers/attn_norm/scale": (layers, width),
    "layers/attn/q/kernel": (layers, width, queries),
    "layers/attn/k/kernel": (layers, width, keys),
    "layers/attn/v/kernel": (layers, width, keys),
    "layers/attn/o/kernel": (layers, queries, width),
    "layers/mlp_norm/scale": (layers, width),
    "layers/mlp/gate/kernel": (layers, width, mlp),
    "layers/mlp/up/kernel": (layers, width, mlp),
    "layers/mlp/down/kernel": (layers, mlp, width),
    "final_norm/scale": (width,),
  }
  if not config.tied:
    shapes["head/kernel"] = (width, config.vocab_size)
  return paths.unflatten({p: jax.ShapeDtypeStruct(s, dtype) for p, s in shapes.items()})


def random_params(config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
  """Random weights of sane scale, for tests and for checks of size and speed."""
  shapes = paths.flatten(param_shapes(config, dtype))
  leaves = {}
  for leaf_key, (path, leaf) in zip(
    jax.random.split(key, len(shapes)), shapes.items(), strict=True
  ):
    noise = jax.random.normal(leaf_key, leaf.shape, jnp.float32)
    if path.endswith("scale"):
      value = 1.0 + 0.1 * noise
    elif path == "embed/tokens":
      value = 0.1 * noise
    else:
      value = noise / math.sqrt(leaf.shape[-2])
    leaves[path] = value.astype(dtype)
  return paths.unflatten(leaves)


def embed(params: Params, config: DecoderConfig, tokens: Int[Array, "B T"]) -> Array:
  """Token ids [B, T] -> embeddings [B, T, D] in the dtype of the table."""
  del config  # families that scale their embeddings will read it
  return stack.take(params["embed"]["tokens"], tokens)


def hidden(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  mask: Int[Array, "B T"] | None = None,
  *,
  remat: bool = False,
) -> Float[Array, "B T D"]:
  """Input embeddings -> hidden states after the final norm, in the dtype of the weights.

  `mask` is 1 for real positions (None: all are); left and right padding give the same results at
  real positions, and padded ones give finite numbers without meaning. The backward pass keeps of
  each layer what would take a product with a weight matrix to recompute; with `remat` it keeps the
  layer's input alone and recomputes the layer.
  """
  cos_sin = _rotation(config, x, mask)
  visible = attention.causal(mask, x.shape[1])

  def body(stream, weights):
    look = lambda q, k, v: attention.attend(q, k, v, visible, True)
    return _layer(weights, config, stream, cos_sin, look)[0], None

  keep = () if remat else KEPT
  stream, _ = stack.scan(body, x.astype(jnp.float32), params["layers"], keep)
  return _final_norm(params, config, stream)


def prefill(
  params: Params,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  mask: Int[Array, "B T"],
  new: int,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """`hidden`, and a cache of its keys and values with room for `new` further tokens."""
  cos_sin = _rotation(config, x, mask)
  visible = attention.causal(mask, x.shape[1])

  def body(stream, weights):
    look = lambda q, k, v: attention.attend(q, k, v, visible, True)
    return _layer(weights, config, stream, cos_sin, look)

  stream, (k, v) = stack.scan(body, x.astype(jnp.float32), params["layers"])
  return _final_norm(params, config, stream), cache.from_prefix(k, v, mask, new)


def step(
  params: Params, config: DecoderConfig, x: Float[Array, "B 1 D"], kept: KVCache
) -> tuple[Float[Array, "B 1 D"], KVCache]:
  """One more token a row: its hidden state and the longer cache.

  The caller sees to it that a slot is free: past the last one the newest slot is overwritten.
  """
  cos_sin = attention.rotation(kept.position[:, None], config.head_dim, config.rope_theta)
  slots = jnp.arange(kept.mask.shape[1])
  visible = ((kept.mask > 0) | (slots == kept.used))[:, None, :]

  def body(stream, scanned):
    weights, k_slots, v_slots = scanned

    def look(q, k, v):
      k, v = cache.put(k_slots, k, kept.used), cache.put(v_slots, v, kept.used)
      return attention.attend(q, k, v, visible)

    return _layer(weights, config, stream, cos_sin, look)

  stream, (k, v) = stack.scan(body, x.astype(jnp.float32), (params["layers"], kept.k, kept.v))
  return _final_norm(params, config, stream), cache.append(kept, k, v)


def logits(params: Params, config: DecoderConfig, states: Float[Array, "... D"]) -> Array:
  """Hidden states (after the final norm) [..., D] -> float32 logits [..., V]."""
  return project(states, *vocabulary(params, config))


def vocabulary(params: Params, config: DecoderConfig) -> tuple[Array, int]:
  """The kernel of the vocabulary projection and its axis that is summed over (see `project`)."""
  return (params["embed"]["tokens"], 1) if config.tied else (params["head"]["kernel"], 0)


def _rotation(config: DecoderConfig, x: Array, mask: Array | None) -> tuple[Array, Array]:
  if mask is None:
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  else:
    positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
  return attention.rotation(positions, config.head_dim, config.rope_theta)


def _rms_norm(x: Array, scale: Array, eps: float) -> Array:
  """float32 x [..., D] divided by its root mean square, times a frozen scale [D]."""
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  return x * inverse * scale.astype(jnp.float32)


def _final_norm(params: Params, config: DecoderConfig, stream: Array) -> Array:
  scale = params["final_norm"]["scale"]
  return _rms_norm(stream, scale, config.norm_eps).astype(scale.dtype)


def _layer(
  weights: Params,
  config: DecoderConfig,
  x: Array,
  cos_sin: tuple[Array, Array],
  look: Callable[[Array, Array, Array], Array],
) -> tuple[Array, tuple[Array, Array]]:
  """One layer of the residual stream x float32 [B, T, D] -> x, and its rotated keys and values.

  `look(q, k, v)` is the attention: it decides which keys and values beside the new ones count.
  """
  attn, mlp = weights["attn"], weights["mlp"]
  split = (*x.shape[:2], -1, config.head_dim)

  normed = _rms_norm(x, weights["attn_norm"]["scale"], config.norm_eps)
  q, k, v = (project(normed, attn[name]["kernel"]).reshape(split) for name in "qkv")
  dtype = attn["q"]["kernel"].dtype
  q, k = (attention.rotate(a, cos_sin).astype(dtype) for a in (q, k))
  v = v.astype(dtype)
  mixed = look(q, k, v)  # [B, T, H, C]
  x = x + project(mixed.reshape(*x.shape[:2], -1), attn["o"]["kernel"])
  # Kept in another shape than the layer's input: XLA starts equal stacks as copies of one another.
  x = checkpoint_name(x[:, None], "middle")[:, 0]

  normed = _rms_norm(x, weights["mlp_norm"]["scale"], config.norm_eps)
  gate, up = (project(normed, mlp[name]["kernel"]) for name in ("gate", "up"))
  inner = gated(gate, up, config.activation, dtype)
  return x + project(inner, mlp["down"]["kernel"]), (k, v)
