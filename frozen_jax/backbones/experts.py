"""Mixture of experts: a router sends each token through a few of the MLPs.

Sparse as in Mixtral (Jiang et al. 2024) and Qwen3-MoE: no token is dropped, none is computed twice.
Tokens are sorted by expert and multiplied group by group (`jax.lax.ragged_dot`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.linear import project, project_groups
from frozen_jax.backbones.quantized import Quantized


def mixture(
  router: Float[Array, "D E"],
  experts: dict[str, dict[str, Float[Array, "E _ _"] | Quantized]],
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  dtype: jnp.dtype,
) -> Float[Array, "B T D"]:
  """The weighted sum of the outputs of each token's experts, float32.

  experts: gate and up kernels [E, D, F], down [E, F, D]. dtype: that of the weights.
  """
  tokens = x.reshape(-1, x.shape[-1])  # [N, D]
  weights = jax.nn.softmax(project(tokens, router), axis=-1)
  weights, expert_ids = jax.lax.top_k(weights, config.experts_per_token)  # [N, k]
  if config.renormalise:
    weights = weights / weights.sum(axis=-1, keepdims=True)

  order = jnp.argsort(expert_ids.reshape(-1), stable=True)  # indices into [N * k], by expert
  sizes = jnp.bincount(expert_ids.reshape(-1), length=config.experts).astype(jnp.int32)
  grouped = tokens[order // config.experts_per_token]
  gate, up = (project_groups(grouped, experts[name]["kernel"], sizes) for name in ("gate", "up"))
  inner = gated(gate, up, config.activation, dtype)
  output = project_groups(inner, experts["down"]["kernel"], sizes)
  inverse = jnp.argsort(order)
  output = output[inverse].reshape(*expert_ids.shape, -1)  # [N, k, D]
  return (output * weights[..., None]).sum(axis=1).reshape(x.shape)
