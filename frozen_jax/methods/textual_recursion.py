"""The textual recursive LM (Levine et al., 2022; docs/paper.md, 4.1): the LM reads its own answers.

Pass one is the LM after a tuned prompt p1, which proposes answers; pass two the same LM after
another prompt p2, which reads the question with the proposed answers and gives the final one.
Frozen: the LM and p1 (`frozen_inputs/first_prompt`). Trained: p2 (`prompt`), on texts that already
hold the proposals; sampling them and putting them into texts is up to the caller.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Method, PassCosts, Tree
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.settings import PromptSettings, check_at_input


@dataclasses.dataclass(frozen=True)
class TextualRecursion(PromptTuning):
  """Pass two: the single-pass LM after p2."""

  name: ClassVar[str] = "textual_recursion"
  sections: ClassVar[Mapping[str, type]] = {"prompt": PromptSettings}
  frozen_inputs: ClassVar[tuple[str, ...]] = ("first_prompt",)
  pass_costs: ClassVar[PassCosts] = PassCosts(1.0, 2.0)  # samples and longer texts are not counted

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "TextualRecursion":
    """See `core.types.Method.build`; the texts of pass two name no data set."""
    del datasets
    settings = sections["prompt"]
    check_at_input(settings, cls.name)
    if settings.per_task:
      raise UserError("textual_recursion has one prompt a pass; set prompt.per_task=False")
    return cls(base.config, settings, remat=remat)

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`."""
    return dict.fromkeys(("prompt", "first_prompt"), soft_prompt.position())

  def first_pass(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """See `core.types.TwoPass.first_pass`: the LM after p1, which may be none."""
    del trainable
    prompt = frozen["frozen_inputs"].get("first_prompt")
    if prompt is None:
      return ZeroShot(self.decoder), {}
    return PromptTuning(self.decoder, self.settings), {"prompt": prompt}
