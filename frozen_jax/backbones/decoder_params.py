"""The parameter tree of the frozen decoder: its arrays for a config, and their logical axes.

Kernels are [in, out]; layers are stacked on the first axis for `lax.scan`, experts on the second.
A norm has a scale [D], and a bias [D] if the config's norm is "layer".

  embed/tokens [V, D]            embed/positions [rows, D]        embed_norm
  layers/attn_norm               layers/attn/{q,k,v,o}/{kernel,bias}
  layers/attn/{q,k}_norm/scale   layers/attn_after                (norms of heads, of the output)
  layers/mlp_norm                layers/mlp/{gate,up,down}/{kernel,bias}
  layers/mlp/router/kernel       layers/experts/{gate,up,down}/kernel
  layers/mlp_after               (norm of the output)
  final_norm                     head/{kernel,bias}
"""

from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import random_weights
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import paths

Params = dict[str, Any]

# Regular expressions on a parameter's whole path -> the logical name of each of its axes.
PARAM_AXES: dict[str, tuple[str | None, ...]] = {
  r"embed/tokens": ("vocab", "embed"),
  r"embed/positions": (None, "embed"),
  r"(embed|final)_norm/(scale|bias)": ("embed",),
  r"layers/(attn|mlp)_(norm|after)/(scale|bias)": ("layers", "embed"),
  r"layers/attn/[qk]_norm/scale": ("layers", None),
  r"layers/attn/q/kernel": ("layers", "embed", "heads"),
  r"layers/attn/q/bias": ("layers", "heads"),
  r"layers/attn/[kv]/kernel": ("layers", "embed", "kv"),
  r"layers/attn/[kv]/bias": ("layers", "kv"),
  r"layers/attn/o/kernel": ("layers", "heads", "embed"),
  r"layers/attn/o/bias": ("layers", "embed"),
  r"layers/mlp/(gate|up)/kernel": ("layers", "embed", "mlp"),
  r"layers/mlp/(gate|up)/bias": ("layers", "mlp"),
  r"layers/mlp/down/kernel": ("layers", "mlp", "embed"),
  r"layers/mlp/down/bias": ("layers", "embed"),
  r"layers/mlp/router/kernel": ("layers", "embed", None),
  r"layers/experts/(gate|up)/kernel": ("layers", "experts", "embed", "mlp"),
  r"layers/experts/down/kernel": ("layers", "experts", "mlp", "embed"),
  r"head/kernel": ("embed", "vocab"),
  r"head/bias": ("vocab",),
}


# The same for the parameters of one layer, by their paths within it.
LAYER_AXES = {
  path.removeprefix("layers/"): axes[1:]
  for path, axes in PARAM_AXES.items()
  if path.startswith("layers/")
}


def param_shapes(config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
  """The parameter tree of a decoder of this config, of `jax.ShapeDtypeStruct`."""
  shapes = {"embed/tokens": (config.vocab_size, config.width)}
  if config.positions == "learned":
    shapes["embed/positions"] = (config.context + config.position_offset, config.width)
  if config.embed_norm:
    shapes |= _norm(config, "embed_norm")
  for path, shape in (_attention(config) | _mlp(config)).items():
    shapes[f"layers/{path}"] = (config.layers, *shape)
  shapes |= _norm(config, "final_norm")
  if not config.tied:
    shapes["head/kernel"] = (config.width, config.vocab_size)
  if config.head_bias:
    shapes["head/bias"] = (config.vocab_size,)
  return paths.unflatten({p: jax.ShapeDtypeStruct(s, dtype) for p, s in shapes.items()})


def random_params(config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
  """Random weights of a plausible scale, for tests and for checks of size and speed."""
  return random_weights.fill(param_shapes(config, dtype), key, 1.0 - config.norm_offset)


def _norm(config: DecoderConfig, path: str) -> dict[str, tuple[int, ...]]:
  parts = ("scale", "bias") if config.norm == "layer" else ("scale",)
  return {f"{path}/{part}": (config.width,) for part in parts}


def _linear(path: str, inputs: int, outputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
  shapes: dict[str, tuple[int, ...]] = {f"{path}/kernel": (inputs, outputs)}
  if bias:
    shapes[f"{path}/bias"] = (outputs,)
  return shapes


def _attention(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  width, dim = config.width, config.head_dim
  shapes = _norm(config, "attn_norm")
  for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
    shapes |= _linear(f"attn/{name}", width, heads * dim, config.qkv_bias)
  if config.qk_norm:
    shapes |= {f"attn/{name}_norm/scale": (dim,) for name in "qk"}
  shapes |= _linear("attn/o", config.heads * dim, width, config.out_bias)
  return shapes | (_norm(config, "attn_after") if config.norm_after else {})


def _mlp(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  width, inner = config.width, config.mlp_width
  shapes = {} if config.shared_norm else _norm(config, "mlp_norm")
  up_names = ("gate", "up") if config.gated else ("up",)
  if config.experts:
    shapes["mlp/router/kernel"] = (width, config.experts)
    shapes |= {f"experts/{name}/kernel": (config.experts, width, inner) for name in up_names}
    shapes["experts/down/kernel"] = (config.experts, inner, width)
  else:
    for name in up_names:
      shapes |= _linear(f"mlp/{name}", width, inner, config.mlp_bias)
    shapes |= _linear("mlp/down", inner, width, config.mlp_bias)
  return shapes | (_norm(config, "mlp_after") if config.norm_after else {})
