"""The prompt generator of ID-PT: from a text's encoder states to prompt vectors for that text.

A Perceiver (Jaegle et al. 2021; docs/paper.md, 2): learned queries attend to encoder states of any
length, the P vectors that come out attend to one another, and a projection brings them to the width
of the frozen LM. float32 throughout.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """Sizes of a generator: P vectors, width d, heads, and how many self-attention blocks.

  `zero_output` starts it out as a map to zero: alongside a constant prompt, p(x) then starts as
  ordinary embeddings. Raises ValueError for a width that the heads do not divide.
  """

  length: int = 16
  width: int = 256
  heads: int = 4
  layers: int = 1
  zero_output: bool = True

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"a generated prompt of length {self.length} holds nothing; give at least 1")
    if self.width % self.heads:
      raise ValueError(f"generator width {self.width} is not divisible by {self.heads} heads")


class _Block(nnx.Module):
  """Attention to a context (or self-attention) and an MLP, each pre-norm with a residual."""

  def __init__(self, config: GeneratorConfig, context_width: int | None, rngs: nnx.Rngs):
    d = config.width
    self.norm = nnx.RMSNorm(d, rngs=rngs)
    self.context_norm = nnx.RMSNorm(context_width, rngs=rngs) if context_width else None
    self.attention = nnx.MultiHeadAttention(
      num_heads=config.heads,
      in_features=d,
      in_kv_features=context_width or d,
      qkv_features=d,
      out_features=d,
      use_bias=False,
      decode=False,
      rngs=rngs,
    )
    self.mlp_norm = nnx.RMSNorm(d, rngs=rngs)
    self.up = nnx.Linear(d, 4 * d, rngs=rngs)
    self.down = nnx.Linear(4 * d, d, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, "B P d"],
    context: Float[Array, "B X De"] | None,
    mask: Bool[Array, "B 1 1 X"] | None,
  ) -> Float[Array, "B P d"]:
    """`mask`: False for states of the context that are not attended to."""
    normed = self.norm(x)
    context = normed if self.context_norm is None else self.context_norm(context)
    x = x + self.attention(normed, context, mask=mask)
    return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class PromptGenerator(nnx.Module):
  """Encoder states [B, X, De] and their mask [B, X] -> p(x) [B, P, D]."""

  def __init__(
    self,
    encoder_width: int,
    lm_width: int,
    config: GeneratorConfig,
    output_scale: float,
    rngs: nnx.Rngs,
  ):
    """`output_scale`: root mean square of the frozen LM's token embeddings."""
    self.config, self.output_scale = config, output_scale
    queries = jax.random.normal(rngs.params(), (config.length, config.width))
    self.queries = nnx.Param(queries)
    self.cross_attention = _Block(config, encoder_width, rngs)
    for index in range(config.layers):  # names: a saved tree has no numbers for keys
      setattr(self, f"block_{index}", _Block(config, None, rngs))
    self.final_norm = nnx.RMSNorm(config.width, rngs=rngs)
    init = {"kernel_init": nnx.initializers.zeros_init()} if config.zero_output else {}
    self.output_proj = nnx.Linear(config.width, lm_width, use_bias=False, rngs=rngs, **init)

  def __call__(
    self, states: Float[Array, "B X De"], mask: Int[Array | np.ndarray, "B X"]
  ) -> Float[Array, "B P D"]:
    """States that the mask leaves out count for nothing, whichever side they are on."""
    states = states.astype(jnp.float32)
    x = jnp.broadcast_to(self.queries[...], (states.shape[0], *self.queries.shape))
    x = self.cross_attention(x, states, jnp.asarray(mask)[:, None, None, :] > 0)
    for index in range(self.config.layers):
      x = getattr(self, f"block_{index}")(x, None, None)
    return self.output_proj(self.final_norm(x)) * self.output_scale
