"""Mixture of experts: each token goes through a few of the MLPs, which a router chooses for it.

Sparse as in Mixtral (Jiang et al. 2024) and Qwen3-MoE: no token is dropped, none is computed twice.
Tokens are sorted by expert and multiplied group by group (`jax.lax.ragged_dot`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.gated import gated
from frozen_jax.backbones.linear import project, project_groups


def mixture(
  router: Float[Array, "D E"],
  experts: dict[str, dict[str, Array]],
  config: DecoderConfig,
  x: Float[Array, "B T D"],
  dtype: jnp.dtype,
) -> Float[Array, "B T D"]:
  """The weighted sum of the chosen experts' MLPs, float32; `dtype` is that of the weights.

  experts: gate and up kernels [E, D, F], down [E, F, D].
  """
  rows = x.reshape(-1, x.shape[-1])  # [N, D]
  shares = jax.nn.softmax(project(rows, router), axis=-1)
  shares, chosen = jax.lax.top_k(shares, config.chosen)  # [N, k]
  if config.renormalise:
    shares = shares / shares.sum(axis=-1, keepdims=True)

  order = jnp.argsort(chosen.reshape(-1), stable=True)  # places [N * k], by expert
  sizes = jnp.bincount(chosen.reshape(-1), length=config.experts).astype(jnp.int32)
  grouped = rows[order // config.chosen]
  gate, up = (project_groups(grouped, experts[name]["kernel"], sizes) for name in ("gate", "up"))
  inner = gated(gate, up, config.activation, dtype)
  given = project_groups(inner, experts["down"]["kernel"], sizes)
  back = jnp.argsort(order)
  given = given[back].reshape(*chosen.shape, -1)  # [N, k, D]
  return (given * shares[..., None]).sum(axis=1).reshape(x.shape)
