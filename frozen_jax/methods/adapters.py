"""Bottleneck adapters (Houlsby et al., 2019) behind attention and MLP; a baseline (METHODS 0).

Frozen: the LM. Trained: `adapters/{attn,mlp}/{down,up}/{kernel,bias}` in every layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import Parts, SinglePass


@dataclasses.dataclass(frozen=True)
class Adapters(SinglePass):
  """The LM with adapters whose inner width is `bottleneck`."""

  bottleneck: int
  name: str = "adapters"

  def init(self, key: jax.Array) -> Tree:
    """The way up starts at zero, so that training starts from the LM as it comes."""
    layers, width, inner = self.decoder.layers, self.decoder.width, self.bottleneck

    def adapter(key: jax.Array) -> Tree:
      noise = jax.random.normal(key, (layers, width, inner)) * width**-0.5
      return {
        "down": {"kernel": noise, "bias": jnp.zeros((layers, inner))},
        "up": {"kernel": jnp.zeros((layers, inner, width)), "bias": jnp.zeros((layers, width))},
      }

    blocks = zip(("attn", "mlp"), jax.random.split(key), strict=True)
    return {"adapters": {block: adapter(own) for block, own in blocks}}

  def parts(self, trainable: Tree, frozen: Tree) -> Parts:
    """See `SinglePass.parts`."""
    return Parts(frozen["lm"], inner={"adapters": trainable["adapters"]})


def build(base: Base, options: Mapping[str, Any]) -> Adapters:
  """Adapters as the experiment's `adapters` options say: bottleneck."""
  width = options["adapters"]["bottleneck"]
  if width < 1:
    raise UserError(f"adapters.bottleneck is {width}; it must be at least 1")
  return Adapters(base.config, width, remat=options["model"]["remat"])
