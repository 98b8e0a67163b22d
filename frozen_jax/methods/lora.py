"""LoRA (Hu et al., 2021): low-rank updates of the frozen matrices; a baseline (METHODS 0).

Frozen: the LM. Trained: `lora/BLOCK/NAME/{a [L, I, r], b [L, r, O]}` for each chosen product. The
update a b is never formed: (x a) b is added to what the frozen matrix gives, times alpha / r.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder as lm
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import Parts, SinglePass


@dataclasses.dataclass(frozen=True)
class Lora(SinglePass):
  """The LM with low-rank updates of rank `rank` of the products `targets` ("attn/q", ...)."""

  targets: tuple[str, ...]
  rank: int
  alpha: float
  name: str = "lora"

  def init(self, key: jax.Array) -> Tree:
    """a is random with variance 1 / I, b is zero: training starts from the LM as it comes."""
    shapes = paths.flatten(lm.param_shapes(self.decoder))
    leaves = {}
    for index, target in enumerate(self.targets):
      layers, inputs, outputs = shapes[f"layers/{target}/kernel"].shape
      noise = jax.random.normal(jax.random.fold_in(key, index), (layers, inputs, self.rank))
      leaves[f"lora/{target}/a"] = noise * inputs**-0.5
      leaves[f"lora/{target}/b"] = jnp.zeros((layers, self.rank, outputs))
    return paths.unflatten(leaves)

  def parts(self, trainable: Tree, frozen: Tree) -> Parts:
    """See `SinglePass.parts`."""
    scale = self.alpha / self.rank
    is_pair = lambda node: "a" in node
    scaled = jax.tree.map(
      lambda pair: {"a": pair["a"], "b": pair["b"] * scale}, trainable["lora"], is_leaf=is_pair
    )
    return Parts(frozen["lm"], inner={"lora": scaled})


def build(base: Base, options: Mapping[str, Any]) -> Lora:
  """LoRA as the experiment's `lora` options say: rank, alpha, targets."""
  lora = options["lora"]
  own = [path for path in paths.flatten(lm.param_shapes(base.config)) if path.endswith("/kernel")]
  known = [path.removeprefix("layers/").removesuffix("/kernel") for path in own]
  known = [path for path in known if path.split("/")[0] in ("attn", "mlp") and "router" not in path]
  odd = [target for target in lora["targets"] if target not in known]
  if odd or not lora["targets"]:
    raise UserError(
      f"lora.targets names {', '.join(odd) or 'nothing'}; this model has {', '.join(known)}"
    )
  if lora["rank"] < 1:
    raise UserError(f"lora.rank is {lora['rank']}; it must be at least 1")
  return Lora(
    base.config,
    tuple(lora["targets"]),
    lora["rank"],
    float(lora["alpha"]),
    remat=options["model"]["remat"],
  )
