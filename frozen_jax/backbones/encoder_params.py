"""The parameter tree of the frozen encoder: its arrays for a config, and their logical axes.

Kernels are [in, out]; layers are stacked on the first axis for `lax.scan`. A norm has a scale, and
a bias if `norm_bias`.

  embed/tokens [V, Ee]           embed/positions [rows, Ee]       embed/types [types, Ee]
  embed_norm                     embed_project/{kernel,bias}      buckets/table [buckets, H]
  layers/attn_norm               layers/attn/{q,k,v,o}/{kernel,bias}
  layers/mlp_norm                layers/mlp/{gate,up,down}/{kernel,bias}
  later/attn_norm [L-1, De]      (instead of layers/attn_norm if `skip_first_norm`)
  final_norm
"""

from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import random_weights
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths

Shapes = dict[str, tuple[int, ...]]

# Regular expressions on a parameter's whole path -> the logical name of each of its axes.
PARAM_AXES: dict[str, tuple[str | None, ...]] = {
  r"embed/tokens": ("vocab", "embed"),
  r"embed/(positions|types)": (None, "embed"),
  r"(embed|final)_norm/(scale|bias)": ("embed",),
  r"embed_project/kernel": (None, "embed"),
  r"embed_project/bias": ("embed",),
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


# The same for the parameters of one layer, by their paths within it.
LAYER_AXES = {
  r"(attn|mlp)_norm/(scale|bias)": ("embed",),
  **{
    path.removeprefix("layers/"): axes[1:]
    for path, axes in PARAM_AXES.items()
    if path.startswith("layers/")
  },
}


def param_shapes(config: EncoderConfig, dtype: Any = jnp.float32) -> Params:
  """The parameter tree of an encoder of this config, of `jax.ShapeDtypeStruct`."""
  shapes = _embedding(config)
  for path, shape in _layer(config).items():
    shapes[f"layers/{path}"] = (config.layers, *shape)
  if config.skip_first_norm:
    norm = _norm(config, "later/attn_norm", config.width)
    shapes |= {path: (config.layers - 1, *shape) for path, shape in norm.items()}
  if config.norm_first:
    shapes |= _norm(config, "final_norm", config.width)
  return paths.unflatten({p: jax.ShapeDtypeStruct(s, dtype) for p, s in shapes.items()})


def random_params(config: EncoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
  """Random weights of a plausible scale, for tests and for checks of size and speed."""
  return random_weights.fill(param_shapes(config, dtype), key)


def _norm(config: EncoderConfig, path: str, width: int) -> Shapes:
  parts = ("scale", "bias") if config.norm_bias else ("scale",)
  return {f"{path}/{part}": (width,) for part in parts}


def _linear(path: str, inputs: int, outputs: int, bias: bool) -> Shapes:
  shapes: Shapes = {f"{path}/kernel": (inputs, outputs)}
  return shapes | ({f"{path}/bias": (outputs,)} if bias else {})


def _embedding(config: EncoderConfig) -> Shapes:
  width = config.embedding_width
  shapes: Shapes = {"embed/tokens": (config.vocab_size, width)}
  if config.positions == "learned":
    shapes["embed/positions"] = (config.context + config.position_offset, width)
  if config.positions == "buckets":
    shapes["buckets/table"] = (config.buckets, config.heads)
  if config.types:
    shapes["embed/types"] = (config.types, width)
  if config.embed_norm:
    shapes |= _norm(config, "embed_norm", width)
  if config.has_projection:
    shapes |= _linear("embed_project", width, config.width, True)
  return shapes


def _layer(config: EncoderConfig) -> Shapes:
  width, inner, heads = config.width, config.mlp_width, config.heads * config.head_dim
  shapes = {} if config.skip_first_norm else _norm(config, "attn_norm", width)
  for name in "qkv":
    shapes |= _linear(f"attn/{name}", width, heads, config.attn_bias)
  shapes |= _linear("attn/o", heads, width, config.attn_bias)
  shapes |= _norm(config, "mlp_norm", width)
  for name in ("gate", "up") if config.gated else ("up",):
    shapes |= _linear(f"mlp/{name}", width, inner, config.mlp_bias)
  return shapes | _linear("mlp/down", inner, width, config.mlp_bias)
