"""LoRA (Hu et al., 2021): low-rank updates of the frozen matrices; a baseline (docs/paper.md, 0).

Frozen: the LM. Trained: `lora/BLOCK/NAME/{a [L, in, rank], b [L, rank, out]}` for each chosen
product. The update a b is never formed: (x a) b is added to the product with the frozen matrix,
times alpha / rank.

The functions on settings and updates serve the re-ranker's text encoder, too.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from frozen_jax.backbones import decoder as lm
from frozen_jax.config.section import Section, setting
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import PassParams, SinglePass


@dataclasses.dataclass(frozen=True)
class LoraSettings(Section):
  """Low-rank updates."""

  section: ClassVar[str] = "lora"

  rank: int = setting(8, "rank of each update", at_least=1)
  alpha: float = setting(16.0, "updates count alpha / rank times", of_weights=True, above=0)
  targets: tuple[str, ...] = setting(
    ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down"),
    "products that get an update",
    nonempty=True,
  )


@dataclasses.dataclass(frozen=True)
class Lora(SinglePass):
  """The LM with low-rank updates."""

  lora: LoraSettings

  name: ClassVar[str] = "lora"
  sections: ClassVar[Mapping[str, type]] = {"lora": LoraSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"lora": 1e-3}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "Lora":
    """See `core.types.Method.build`."""
    del datasets
    check_lora(sections["lora"], lm.param_shapes(base.config), "model")
    return cls(base.config, sections["lora"], remat=remat)

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """See `init_updates`."""
    del base
    return {"lora": init_updates(self.lora, lm.param_shapes(self.decoder), key)}

  def pass_params(self, trainable: Tree, frozen: Tree) -> PassParams:
    """See `SinglePass.pass_params`."""
    return PassParams(frozen["lm"], peft={"lora": scaled_updates(self.lora, trainable["lora"])})


def check_lora(lora: LoraSettings, shapes: Tree, network: str) -> None:
  """UserError for targets that a network of these shapes does not have.

  `network`: what the message calls it.
  """
  targets = product_names(paths.flatten(shapes))
  unknown = [target for target in lora.targets if target not in targets]
  if unknown:
    raise UserError(
      f"{lora.section}.targets names {', '.join(unknown)}; this {network} has {', '.join(targets)}"
    )


def init_updates(lora: LoraSettings, shapes: Tree, key: PRNGKeyArray) -> Tree:
  """{BLOCK: {NAME: {"a", "b"}}}, float32: a random with variance 1 / in, b zero.

  So training starts from the unmodified network. `shapes`: of all its parameters.
  """
  kernels, leaves = paths.flatten(shapes), {}
  for index, target in enumerate(lora.targets):
    layers, inputs, outputs = kernels[f"layers/{target}/kernel"].shape
    noise = jax.random.normal(jax.random.fold_in(key, index), (layers, inputs, lora.rank))
    leaves[f"{target}/a"] = noise * inputs**-0.5
    leaves[f"{target}/b"] = jnp.zeros((layers, lora.rank, outputs))
  return paths.unflatten(leaves)


def scaled_updates(lora: LoraSettings, updates: Tree) -> Tree:
  """The updates as they are applied: b times alpha / rank."""
  scale = lora.alpha / lora.rank
  return jax.tree.map(
    lambda update: {"a": update["a"], "b": update["b"] * scale},
    updates,
    is_leaf=lambda node: "a" in node,
  )


def product_names(param_paths: Iterable[str]) -> list[str]:
  """The products of attention and MLP ("attn/q", ...) among the paths of a network's parameters."""
  names = [
    path.removeprefix("layers/").removesuffix("/kernel")
    for path in param_paths
    if path.startswith("layers/") and path.endswith("/kernel")
  ]
  return [n for n in names if n.split("/")[0] in ("attn", "mlp") and "router" not in n]
