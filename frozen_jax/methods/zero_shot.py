"""Zero-shot: the unmodified LM, the baseline that trains nothing (docs/paper.md, 0)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import PRNGKeyArray

from frozen_jax.core.types import Base, Tree
from frozen_jax.methods.single_pass import SinglePass


@dataclasses.dataclass(frozen=True)
class ZeroShot(SinglePass):
  """The unmodified LM; its trained tree is {}."""

  name: ClassVar[str] = "zero_shot"
  sections: ClassVar[Mapping[str, type]] = {}
  learning_rates: ClassVar[Mapping[str, float]] = {}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "ZeroShot":
    """See `core.types.Method.build`."""
    del sections, datasets
    return cls(base.config, remat=remat)

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Nothing is trained: {}."""
    del base, key
    return {}
