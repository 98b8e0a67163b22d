"""Prefix tuning (Li and Liang, 2021): trained keys and values in each layer; a baseline.

Frozen: the LM. Trained: `prefix/{k, v}` [L, P, K, C]. They start as the keys and values that the LM
itself has for a text, which Li and Liang found better than random ones, and are trained directly:
with a start like this the network that they generate prefixes with is not needed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.cache import KVCache
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.prompt_tuning import initial_prompt
from frozen_jax.methods.single_pass import Parts, SinglePass


@dataclasses.dataclass(frozen=True)
class PrefixTuning(SinglePass):
  """The LM behind a prefix; `initial`: where it starts, {"k", "v"} each [L, P, K, C]."""

  initial: Tree = dataclasses.field(compare=False)
  name: str = "prefix_tuning"

  def init(self, key: jax.Array) -> Tree:
    """The key is not used, the start is given."""
    del key
    return {"prefix": dict(self.initial)}

  def parts(self, trainable: Tree, frozen: Tree) -> Parts:
    """See `SinglePass.parts`."""
    return Parts(frozen["lm"], inner={"prefix": trainable["prefix"]})


def build(base: Base, options: Mapping[str, Any]) -> PrefixTuning:
  """Prefix tuning; the `prompt` options (length, text) say how long it is and how it starts."""
  vectors = initial_prompt(base, options)[None]
  mask = jnp.ones(vectors.shape[:2], jnp.int32)
  config = dataclasses.replace(base.config, cache="")  # what is trained starts in full precision
  _, cache = jax.jit(lm.prefill, static_argnums=(1, 4))(base.params, config, vectors, mask, 0)
  return PrefixTuning(base.config, as_prefix(cache), remat=options["model"]["remat"])


def as_prefix(cache: KVCache) -> dict[str, jax.Array]:
  """The keys and values of a cache's first row, {"k", "v"} each float32 [L, S, K, C]."""
  return {
    "k": jnp.stack([a[0].transpose(2, 0, 1) for a in cache.k]).astype(jnp.float32),
    "v": jnp.stack([a[0].transpose(1, 0, 2) for a in cache.v]).astype(jnp.float32),
  }
