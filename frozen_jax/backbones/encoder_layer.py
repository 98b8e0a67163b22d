"""One layer of the encoder, with pre-norm or post-norm."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from frozen_jax.backbones import attention
from frozen_jax.backbones.activations import ACTIVATIONS
from frozen_jax.backbones.attention_inputs import AttentionInputs
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.norms import layer_norm, rms_norm
from frozen_jax.sharding.activations import constrain, constrain_rows

Product = Callable[[Array, Array], Array]  # x [..., in], kernel [in, out] -> float32 [..., out]
Attend = Callable[[Array, Array, Array, AttentionInputs], Array]  # of q, k, v [B, T, H, C]

# The values that a layer saves for its backward pass: all whose recomputation would need a product
# with a weight matrix (see `decoder_layer.SAVED_NAMES`).
SAVED_NAMES = ("attention", "qkv", "gated", "middle", "end")


def apply_layer(
  weights: Params,
  config: EncoderConfig,
  x: Float[Array, "B T De"],
  inputs: AttentionInputs,
  attend: Attend,
  skip_norm: Bool[Array, ""] | None,
  product: Product,
  output_positions: Int[Array, "B O"] | None = None,
) -> Float[Array, "B T De"] | Float[Array, "B O De"]:
  """One layer of the residual stream x, float32.

  `attend`: `attend_with_mask`, or a kernel that gives the same. `skip_norm`: whether this layer
  leaves out its first norm (None: no layer does). With `output_positions` only the stream at these
  O positions is returned.
  """
  # Saved in another shape than the layer's input: XLA starts equal stacks as copies of one another.
  save = lambda x, name: checkpoint_name(constrain_rows(x)[:, None], name)[:, 0]
  if config.norm_first:
    normed = norm(weights["attn_norm"], config, x)
    normed = normed if skip_norm is None else jnp.where(skip_norm, x, normed)
    x = _at_positions(x, output_positions)
    x = x + _attention(weights, config, normed, inputs, attend, product, output_positions)
    x = save(x, "middle")
    x = x + _mlp(weights, config, norm(weights["mlp_norm"], config, x), product)
    return constrain_rows(x)
  residual = _at_positions(x, output_positions)
  x = residual + _attention(weights, config, x, inputs, attend, product, output_positions)
  x = save(x, "middle")
  x = norm(weights["attn_norm"], config, x)
  x = save(x + _mlp(weights, config, x, product), "end")
  return constrain_rows(norm(weights["mlp_norm"], config, x))


def _attention(
  weights: Params,
  config: EncoderConfig,
  x: Float[Array, "B T De"],
  inputs: AttentionInputs,
  attend: Attend,
  product: Product,
  output_positions: Int[Array, "B O"] | None,
) -> Float[Array, "B T De"] | Float[Array, "B O De"]:
  """x float32 -> the output of attention, at all positions or at `output_positions`."""
  attn, dtype = weights["attn"], weights["mlp_norm"]["scale"].dtype
  query_inputs = _inputs_at_positions(inputs, output_positions)
  queries = _at_positions(x, output_positions)
  by_head = lambda x, name: linear(x, attn[name], product).reshape(
    *x.shape[:2], config.heads, config.head_dim
  )
  q, k, v = by_head(queries, "q"), by_head(x, "k"), by_head(x, "v")
  if inputs.cos_sin is not None:
    q, k = attention.rotate(q, query_inputs.cos_sin), attention.rotate(k, inputs.cos_sin)
  if not config.scaled:  # attention divides by the root of C
    q = q * config.head_dim**0.5
  q, k, v = (constrain(a.astype(dtype), "batch", None, "heads", None) for a in (q, k, v))
  mixed = attend(q, k, v, query_inputs)  # [B, T, H, C]
  mixed = constrain(mixed, "batch", None, "heads", None)
  return linear(mixed.reshape(*queries.shape[:2], -1), attn["o"], product)


def attend_with_mask(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B S H C"],
  v: Float[Array, "B S H C"],
  inputs: AttentionInputs,
) -> Float[Array, "B T H C"]:
  """`attention.attend` with the mask and the bias of a kind of layer."""
  return attention.attend(q, k, v, inputs.mask, inputs.bias)


def _at_positions(
  x: Shaped[Array, "#B T *rest"], positions: Int[Array, "B O"] | None
) -> Shaped[Array, "_ _ *rest"]:
  """x at some positions of each row [B, O, ...]; None: all of x. One row of x serves all rows."""
  if positions is None:
    return x
  x = jnp.broadcast_to(x, (positions.shape[0], *x.shape[1:]))
  index = positions.reshape(*positions.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _inputs_at_positions(
  inputs: AttentionInputs, positions: Int[Array, "B O"] | None
) -> AttentionInputs:
  """The attention inputs of the queries at some positions; None: of all."""
  if positions is None:
    return inputs
  cos_sin = inputs.cos_sin and tuple(_at_positions(a, positions) for a in inputs.cos_sin)
  bias = inputs.bias
  if bias is not None:
    bias = _at_positions(bias.swapaxes(1, 2), positions).swapaxes(1, 2)
  return AttentionInputs(cos_sin, _at_positions(inputs.mask, positions), bias)


def _mlp(
  weights: Params, config: EncoderConfig, x: Float[Array, "B T De"], product: Product
) -> Float[Array, "B T De"]:
  """x float32 -> the output of the MLP."""
  mlp, dtype = weights["mlp"], weights["mlp_norm"]["scale"].dtype
  up = linear(x, mlp["up"], product)
  if config.gated:
    inner = gated(linear(x, mlp["gate"], product), up, config.activation, dtype)
  else:
    saved = checkpoint_name(up.astype(dtype), "gated")
    inner = ACTIVATIONS[config.activation](saved.astype(jnp.float32)).astype(dtype)
  return linear(constrain(inner, "batch", None, "mlp"), mlp["down"], product)


def linear(x: Float[Array, "*N in"], weights: Params, product: Product) -> Float[Array, "*N out"]:
  """x through a linear layer, float32."""
  output = product(x, weights["kernel"])
  return output + weights["bias"].astype(jnp.float32) if "bias" in weights else output


def norm(weights: Params, config: EncoderConfig, x: Float[Array, "*N De"]) -> Float[Array, "*N De"]:
  """The norm that the config asks for, float32, over the last axis."""
  if config.norm == "rms":
    return rms_norm(x, weights["scale"], config.norm_eps)
  return layer_norm(x, weights["scale"], weights.get("bias"), config.norm_eps)
