"""The textual recursive LM (Levine et al., 2022; METHODS 4.1): the LM reads its own answers.

Pass one is the LM behind a tuned prompt p1, which proposes answers; pass two the same LM behind
another prompt p2, which reads the question with what was proposed and gives the answer. Frozen: the
LM and p1 (`fixed/first_prompt`). Trained: p2 (`prompt`), on texts that already hold the proposals;
who samples them and puts them into a text is `run/candidates/`.
"""

from collections.abc import Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Method, Tree
from frozen_jax.methods.prompt_tuning import PromptTuning, initial_prompt


class TextualRecursion(PromptTuning):
  """Pass two: the single-pass LM behind p2, which knows its pass one."""

  def first(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """See `core.types.TwoPass.first`."""
    del trainable
    return PromptTuning(self.decoder, None), {"prompt": frozen["fixed"]["first_prompt"]}


def build(base: Base, options: Mapping[str, Any]) -> TextualRecursion:
  """Pass two with a prompt as the experiment's `prompt` options say.

  Raises UserError for prompts by data set: the texts of pass two name none.
  """
  if options["prompt"]["per_task"]:
    raise UserError("textual_recursion has one prompt a pass; set prompt.per_task=False")
  start, remat = initial_prompt(base, options), options["model"]["remat"]
  return TextualRecursion(base.config, start, name="textual_recursion", remat=remat)
