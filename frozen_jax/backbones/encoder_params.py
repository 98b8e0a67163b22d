"""The parameter tree of the frozen encoder: which arrays a config asks for, and how they shard.

Kernels are [in, out]; layers are stacked on the first axis for `lax.scan`. A norm is scale, and
bias where `norm_bias`. E is the width of the embeddings, N the rows of the table of positions.

  embed/tokens [V, E]            embed/positions [N, E]           embed/types [types, E]
  embed_norm                     embed_project/{kernel,bias}      buckets/table [buckets, H]
  layers/attn_norm               layers/attn/{q,k,v,o}/{kernel,bias}
  layers/mlp_norm                layers/mlp/{gate,up,down}/{kernel,bias}
  later/attn_norm                (instead of layers/attn_norm where the first layer has none: L-1)
  final_norm                     pooler/{kernel,bias}
"""

from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import random_weights
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths

Params = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

# Regular expressions on a parameter's whole path -> the logical name of each of its axes.
PARAM_AXES: dict[str, tuple[str | None, ...]] = {
  r"embed/tokens": ("vocab", "embed"),
  r"embed/(positions|types)": (None, "embed"),
  r"(embed|final)_norm/(scale|bias)": ("embed",),
  r"(embed_project|pooler)/kernel": (None, "embed"),
  r"(embed_project|pooler)/bias": ("embed",),
  r"buckets/table": (None, "heads"),
  r"(layers|later)/(attn|mlp)_norm/(scale|bias)": ("layers", "embed"),
  r"layers/attn/[qkv]/kernel": ("layers", "embed", "heads"),
  r"layers/attn/[qkv]/bias": ("layers", "heads"),
  r"layers/attn/o/kernel": ("layers", "heads", "embed"),
  r"layers/mlp/(gate|up)/kernel": ("layers", "embed", "mlp"),
  r"layers/mlp/(gate|up)/bias": ("layers", "mlp"),
  r"layers/mlp/down/kernel": ("layers", "mlp", "embed"),
  r"layers/(attn/o|mlp/down)/bias": ("layers", "embed"),
}


def param_shapes(config: EncoderConfig, dtype: Any = jnp.float32) -> Params:
  """The tree of `jax.ShapeDtypeStruct` that an encoder of this config must have."""
  shapes = _embedding(config)
  for path, shape in _layer(config).items():
    shapes[f"layers/{path}"] = (config.layers, *shape)
  if config.bare_start:
    norm = _norm(config, "later/attn_norm", config.width)
    shapes |= {path: (config.layers - 1, *shape) for path, shape in norm.items()}
  if config.norm_first:
    shapes |= _norm(config, "final_norm", config.width)
  if config.pooling == "pooler":
    shapes |= _product("pooler", config.width, config.width, True)
  return paths.unflatten({p: jax.ShapeDtypeStruct(s, dtype) for p, s in shapes.items()})


def random_params(config: EncoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
  """Random weights of sane scale, for tests and for checks of size and speed."""
  return random_weights.fill(param_shapes(config, dtype), key)


def _norm(config: EncoderConfig, path: str, width: int) -> Shapes:
  parts = ("scale", "bias") if config.norm_bias else ("scale",)
  return {f"{path}/{part}": (width,) for part in parts}


def _product(path: str, inputs: int, outputs: int, bias: bool) -> Shapes:
  shapes: Shapes = {f"{path}/kernel": (inputs, outputs)}
  return shapes | ({f"{path}/bias": (outputs,)} if bias else {})


def _embedding(config: EncoderConfig) -> Shapes:
  narrow = config.embedding
  shapes: Shapes = {"embed/tokens": (config.vocab_size, narrow)}
  if config.positions == "learned":
    shapes["embed/positions"] = (config.context + config.position_offset, narrow)
  if config.positions == "buckets":
    shapes["buckets/table"] = (config.buckets, config.heads)
  if config.types:
    shapes["embed/types"] = (config.types, narrow)
  if config.embed_norm:
    shapes |= _norm(config, "embed_norm", narrow)
  if config.projected:
    shapes |= _product("embed_project", narrow, config.width, True)
  return shapes


def _layer(config: EncoderConfig) -> Shapes:
  width, inner, heads = config.width, config.mlp_width, config.heads * config.head_dim
  shapes = {} if config.bare_start else _norm(config, "attn_norm", width)
  for name in "qkv":
    shapes |= _product(f"attn/{name}", width, heads, config.attn_bias)
  shapes |= _product("attn/o", heads, width, config.attn_bias)
  shapes |= _norm(config, "mlp_norm", width)
  for name in ("gate", "up") if config.gated else ("up",):
    shapes |= _product(f"mlp/{name}", width, inner, config.mlp_bias)
  return shapes | _product("mlp/down", inner, width, config.mlp_bias)
