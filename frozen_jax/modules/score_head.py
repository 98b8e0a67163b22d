"""The head of a re-ranker: from the encoder's state of a question and a passage to one score.

A hidden layer and a projection to one number, as in transformers' sequence classifiers; they differ
in where dropout and a norm are (Devlin et al. 2018; Liu et al. 2019; Clark et al. 2020;
Warner et al. 2024). float32 throughout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.modules.nnx_params import module_params, with_params

_INIT_STD = 0.02  # of the weights, as in the encoders' families

HEAD_ACTIVATIONS = {
  "tanh": jnp.tanh,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}
HEAD_POOLINGS = ("first", "mean")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """The form of a head; the defaults are those of BERT. Raises ValueError for what is no head.

  pooling        its input: the state of the first token, or the mean over real tokens
  activation     of the hidden layer, one of HEAD_ACTIVATIONS
  dense_bias     whether the hidden layer has a bias
  norm_eps       0: no norm after the activation; else a layer norm with this constant
  norm_bias      whether that norm has a bias
  dropout        share that is dropped before the projection
  input_dropout  whether dropout is applied before the hidden layer, too
  """

  pooling: str = "first"
  activation: str = "tanh"
  dense_bias: bool = True
  norm_eps: float = 0.0
  norm_bias: bool = True
  dropout: float = 0.1
  input_dropout: bool = False

  def __post_init__(self):
    if self.pooling not in HEAD_POOLINGS:
      raise ValueError(
        f"a head's pooling is {self.pooling!r}; it is one of {', '.join(HEAD_POOLINGS)}"
      )
    if self.activation not in HEAD_ACTIVATIONS:
      raise ValueError(
        f"a head's activation is {self.activation!r}; it is one of {', '.join(HEAD_ACTIVATIONS)}"
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"a head's dropout is {self.dropout}; it is a share from 0 to below 1")


class ScoreHead(nnx.Module):
  """Pooled states [N, De] -> scores float32 [N]."""

  def __init__(self, width: int, config: HeadConfig, rngs: nnx.Rngs):
    self.config = config
    init = nnx.initializers.normal(_INIT_STD)
    self.dense = nnx.Linear(width, width, use_bias=config.dense_bias, kernel_init=init, rngs=rngs)
    if config.norm_eps:
      self.norm = nnx.LayerNorm(
        width, epsilon=config.norm_eps, use_bias=config.norm_bias, rngs=rngs
      )
    self.score = nnx.Linear(width, 1, kernel_init=init, rngs=rngs)
    self.dropout = nnx.Dropout(config.dropout)

  def __call__(
    self, states: Float[Array, "N De"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "N"]:
    """`key` drives dropout; None switches it off."""
    keys = (None, None) if key is None else jax.random.split(key)
    x = states.astype(jnp.float32)
    if self.config.input_dropout:
      x = self.dropout(x, deterministic=key is None, rngs=keys[0])
    x = HEAD_ACTIVATIONS[self.config.activation](self.dense(x))
    if self.config.norm_eps:
      x = self.norm(x)
    x = self.dropout(x, deterministic=key is None, rngs=keys[1])
    return self.score(x)[:, 0]


def init_params(width: int, config: HeadConfig, key: PRNGKeyArray) -> dict[str, Any]:
  """Initial parameters of a head: {"dense": ..., "norm"?: ..., "score": ...}."""
  return module_params(ScoreHead(width, config, nnx.Rngs(key)))


def scores(
  params: dict[str, Any],
  config: HeadConfig,
  states: Float[Array, "N De"],
  key: PRNGKeyArray | None = None,
) -> Float[Array, "N"]:
  """The head with these parameters: pooled states [N, De] -> scores float32 [N]."""
  create = lambda key: ScoreHead(states.shape[-1], config, nnx.Rngs(key))
  return with_params(create, params)(states, key)
