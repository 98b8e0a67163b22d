"""Prefix tuning (Li and Liang, 2021): trained keys and values in each layer; a baseline.

Frozen: the LM. Trained: `prefix/{k, v}` [L, P, K, C]. They start as the LM's keys and values of a
text, which Li and Liang found better than random ones, and are trained directly: with such a start
the network that they generate prefixes with is not needed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.cache import KVCache
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.prompt_tuning import initial_prompt
from frozen_jax.methods.single_pass import PassParams, SinglePass
from frozen_jax.modules.settings import PromptSettings, check_at_input


@dataclasses.dataclass(frozen=True)
class PrefixTuning(SinglePass):
  """The LM after a prefix; `settings`: how long it is, and of which text it starts."""

  settings: PromptSettings = dataclasses.field(compare=False)

  name: ClassVar[str] = "prefix_tuning"
  sections: ClassVar[Mapping[str, type]] = {"prompt": PromptSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"prefix": 5e-3}
  no_decay: ClassVar[tuple[str, ...]] = ("prefix/.*",)

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "PrefixTuning":
    """See `core.types.Method.build`."""
    del datasets
    check_at_input(sections["prompt"], cls.name)
    return cls(base.config, sections["prompt"], remat=remat)

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"prefix": {"k", "v"}}, the keys and values of a prompt's start."""
    vectors = initial_prompt(base, self.settings, key)[None]
    mask = jnp.ones(vectors.shape[:2], jnp.int32)
    config = dataclasses.replace(self.decoder, cache="")  # not quantised: they are trained
    prefill = jax.jit(lm.prefill, static_argnums=(1, 4))
    _, cache = prefill(base.params, config, vectors, mask, 0)
    return {"prefix": prefix_of_cache(cache)}

  def pass_params(self, trainable: Tree, frozen: Tree) -> PassParams:
    """See `SinglePass.pass_params`."""
    return PassParams(frozen["lm"], peft={"prefix": trainable["prefix"]})


def prefix_of_cache(cache: KVCache) -> dict[str, Float[Array, "L S K C"]]:
  """The keys and values of a cache's first row, {"k", "v"} each float32 [L, S, K, C]."""
  return {
    "k": jnp.stack([a[0].transpose(2, 0, 1) for a in cache.k]).astype(jnp.float32),
    "v": jnp.stack([a[0].transpose(1, 0, 2) for a in cache.v]).astype(jnp.float32),
  }
