"""Full fine-tuning: the rival of all frozen methods, measured beside them.

Trained: `lm`, a float32 copy of every weight of the LM, which starts as the frozen one; the frozen
tree itself stays as it is. It costs what the frozen methods save: about 6N FLOPs a token, three
more copies of the model for the gradient and Adam's moments, and a checkpoint of the whole model.
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
class FineTuning(SinglePass):
  """The LM with weights of its own; `initial`: the frozen ones, from which they start."""

  initial: Tree = dataclasses.field(compare=False)
  name: str = "fine_tuning"

  def init(self, key: jax.Array) -> Tree:
    """A float32 copy of the LM."""
    del key
    return {"lm": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self.initial)}

  def parts(self, trainable: Tree, frozen: Tree) -> Parts:
    """See `SinglePass.parts`; the copy computes in the dtype of the frozen weights."""
    del frozen
    own = jax.tree.map(lambda a, like: a.astype(like.dtype), trainable["lm"], self.initial)
    return Parts(own, trained=True)


def build(base: Base, options: Mapping[str, Any]) -> FineTuning:
  """Full fine-tuning; it has no options of its own."""
  if options["model"]["quantize"]:
    raise UserError("fine-tuning trains every weight; leave model.quantize empty")
  if base.config.experts:
    raise UserError("fine-tuning of a mixture of experts is not supported; choose a dense model")
  return FineTuning(base.config, base.params, remat=options["model"]["remat"])
