"""One layer of the frozen decoder, which every kind of pass of `decoder` applies.

The passes differ in which keys and values a token attends to, and in what they keep of them: that
is the function `attend` that they give to the layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from frozen_jax.backbones import attention, norms, peft_layers
from frozen_jax.backbones.activations import ACTIVATIONS
from frozen_jax.backbones.attention_inputs import AttentionInputs
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.experts import mixture
from frozen_jax.backbones.gated import gated
from frozen_jax.sharding.activations import constrain, constrain_rows

# The values that a layer saves for its backward pass (see `checkpoint_name` here, in attention,
# kernels and gated): all whose recomputation would need a product with a weight matrix.
SAVED_NAMES = ("attention", "qkv", "gated", "middle")


class Layer(NamedTuple):
  """A layer's frozen weights, its PEFT parameters, and the product with its matrices."""

  weights: Params
  peft: Params
  product: Callable[[Array, Array], Array]

  def linear(self, path: str, x: Float[Array, "*N in"]) -> Float[Array, "*N out"]:
    """x through the linear layer at a path such as "attn/q": kernel, bias and LoRA."""
    block, name = path.split("/")
    weights = self.weights[block][name]
    output = self.product(x, weights["kernel"])
    if "bias" in weights:
      output = output + weights["bias"].astype(jnp.float32)
    return peft_layers.add_lora(output, x, self.peft, block, name)


def apply_layer(
  layer: Layer,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  inputs: AttentionInputs,
  attend: Callable[[Array, Array, Array, AttentionInputs], tuple[Array, Any]],
) -> tuple[Float[Array, "B T D"], Any]:
  """One layer of the residual stream x, float32 -> x, and what `attend` returns besides.

  `attend(q, k, v, inputs)` is the attention of one kind of pass: q and k are rotated; it decides
  which other keys and values count, and returns the result [B, T, H, C] and what the pass keeps.
  """
  weights = layer.weights
  x = _split_stream(x)
  attn_input = norm(weights["attn_norm"], config, x)
  attn_output, kv = _attention(layer, config, attn_input, inputs, attend)
  if config.parallel:
    mlp_input = attn_input if config.shared_norm else norm(weights["mlp_norm"], config, x)
    return _split_stream(x + attn_output + _mlp(layer, config, mlp_input)), kv
  x = _split_stream(x + attn_output)
  # Saved in another shape than the layer's input: XLA starts equal stacks as copies of one another.
  x = checkpoint_name(x[:, None], "middle")[:, 0]
  return _split_stream(x + _mlp(layer, config, norm(weights["mlp_norm"], config, x))), kv


def _attention(
  layer: Layer,
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  inputs: AttentionInputs,
  attend: Callable[[Array, Array, Array, AttentionInputs], tuple[Array, Any]],
) -> tuple[Float[Array, "B T D"], Any]:
  """Normed x, float32 -> the output of attention, and what `attend` returns besides."""
  weights, dtype = layer.weights, layer.weights["attn_norm"]["scale"].dtype
  split = (*x.shape[:2], -1, config.head_dim)
  q, k, v = (layer.linear(f"attn/{name}", x).reshape(split) for name in "qkv")
  if config.qk_norm:
    q = norm(weights["attn"]["q_norm"], config, q)
    k = norm(weights["attn"]["k_norm"], config, k)
  if inputs.cos_sin is not None:
    q, k = (attention.rotate(a, inputs.cos_sin, config.interleaved) for a in (q, k))
  if config.query_scale is not None:  # attention divides by the root of C
    q = q * (config.query_scale * config.head_dim**0.5)
  q, k, v = (a.astype(dtype) for a in (q, k, v))
  q = constrain(q, "batch", None, "heads", None)
  k, v = (constrain(a, "batch", None, "kv", None) for a in (k, v))
  mixed, kv = attend(q, k, v, inputs)  # [B, T, H, C]
  mixed = constrain(mixed, "batch", None, "heads", None)
  if x.shape[1] == 1:
    mixed = constrain(mixed, "data_batch", None, "heads", None)
  output = layer.linear("attn/o", mixed.reshape(*x.shape[:2], -1))
  output = peft_layers.apply_adapter(output, layer.peft, "attn")
  return (norm(weights["attn_after"], config, output) if config.norm_after else output), kv


def _mlp(layer: Layer, config: DecoderConfig, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Normed x, float32 -> the output of the MLP."""
  weights, dtype = layer.weights, layer.weights["attn_norm"]["scale"].dtype
  if config.experts:
    output = mixture(weights["mlp"]["router"]["kernel"], weights["experts"], config, x, dtype)
  else:
    up = layer.linear("mlp/up", x)
    if config.gated:
      inner = gated(layer.linear("mlp/gate", x), up, config.activation, dtype)
    else:
      saved = checkpoint_name(up.astype(dtype), "gated")
      inner = ACTIVATIONS[config.activation](saved.astype(jnp.float32)).astype(dtype)
    inner = constrain(inner, "batch" if x.shape[1] > 1 else "data_batch", None, "mlp")
    output = layer.linear("mlp/down", inner)
  output = peft_layers.apply_adapter(output, layer.peft, "mlp")
  return norm(weights["mlp_after"], config, output) if config.norm_after else output


def _split_stream(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """The residual stream as the mesh splits it.

  By rows, so that the weights are gathered; of single tokens `fsdp` splits the features, as it does
  those of the weights, which stay where they are: to move the tokens is less.
  """
  return constrain_rows(x) if x.shape[1] > 1 else constrain(x, "data_batch", None, "embed")


def norm(weights: Params, config: DecoderConfig, x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
  """The norm that the config asks for, float32, over the last axis."""
  if config.norm == "layer":
    return norms.layer_norm(x, weights["scale"], weights["bias"], config.norm_eps)
  return norms.rms_norm(x, weights["scale"], config.norm_eps, config.norm_offset)
