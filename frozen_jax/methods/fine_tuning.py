"""Full fine-tuning: the baseline of all frozen methods, measured alongside them.

Trained: `lm`, a float32 copy of every weight of the LM, which starts as the frozen one; the frozen
tree itself does not change. It costs what the frozen methods save: about 6N FLOPs a token, three
more copies of the model for the gradient and Adam's moments, and a checkpoint of the whole model.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from frozen_jax.backbones.quantized import Quantized
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import PassParams, SinglePass


@dataclasses.dataclass(frozen=True)
class FineTuning(SinglePass):
  """The LM with trained weights in place of the frozen ones, in whose dtypes it computes."""

  name: ClassVar[str] = "fine_tuning"
  sections: ClassVar[Mapping[str, type]] = {}
  learning_rates: ClassVar[Mapping[str, float]] = {"lm": 2e-5}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "FineTuning":
    """See `core.types.Method.build`."""
    del sections, datasets
    is_quantized = lambda node: isinstance(node, Quantized)
    if any(map(is_quantized, jax.tree.leaves(base.params, is_leaf=is_quantized))):
      raise UserError("fine-tuning trains every weight; leave model.quantize empty")
    if base.config.experts:
      raise UserError("fine-tuning of a mixture of experts is not supported; choose a dense model")
    return cls(base.config, remat=remat)

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """A float32 copy of the LM's weights."""
    del key
    return {"lm": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), base.params)}

  def pass_params(self, trainable: Tree, frozen: Tree) -> PassParams:
    """See `SinglePass.pass_params`."""
    layers = frozen["lm"]["layers"]
    like = frozen["lm"] | {"layers": layers[0] if isinstance(layers, list) else layers}
    cast = lambda leaf, of_frozen: leaf.astype(of_frozen.dtype)
    return PassParams(jax.tree.map(cast, trainable["lm"], like), train_params=True)
