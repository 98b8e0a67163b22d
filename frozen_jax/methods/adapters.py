"""Bottleneck adapters (Houlsby et al., 2019) after attention and MLP; a baseline.

See docs/paper.md, 0.

Frozen: the LM. Trained: `adapters/{attn,mlp}/{down,up}/{kernel,bias}` in every layer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from frozen_jax.config.section import Section, setting
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import PassParams, SinglePass


@dataclasses.dataclass(frozen=True)
class AdapterSettings(Section):
  """Bottleneck adapters."""

  section: ClassVar[str] = "adapters"

  bottleneck: int = setting(32, "inner width of each adapter", at_least=1)


@dataclasses.dataclass(frozen=True)
class Adapters(SinglePass):
  """The LM with adapters whose inner width is `bottleneck`."""

  bottleneck: int

  name: ClassVar[str] = "adapters"
  sections: ClassVar[Mapping[str, type]] = {"adapters": AdapterSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"adapters": 1e-3}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "Adapters":
    """See `core.types.Method.build`."""
    del datasets
    return cls(base.config, sections["adapters"].bottleneck, remat=remat)

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """The up projections start at zero, so that training starts from the unmodified LM."""
    del base
    layers, width, inner = self.decoder.layers, self.decoder.width, self.bottleneck

    def adapter(key: jax.Array) -> Tree:
      kernel = jax.random.normal(key, (layers, width, inner)) * width**-0.5
      return {
        "down": {"kernel": kernel, "bias": jnp.zeros((layers, inner))},
        "up": {"kernel": jnp.zeros((layers, inner, width)), "bias": jnp.zeros((layers, width))},
      }

    attn_key, mlp_key = jax.random.split(key)
    return {"adapters": {"attn": adapter(attn_key), "mlp": adapter(mlp_key)}}

  def pass_params(self, trainable: Tree, frozen: Tree) -> PassParams:
    """See `SinglePass.pass_params`."""
    return PassParams(frozen["lm"], peft={"adapters": trainable["adapters"]})
