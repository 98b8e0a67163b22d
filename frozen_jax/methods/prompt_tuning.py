"""Prompt tuning (Lester et al., 2021): P trained vectors before the text, one pass.

See docs/paper.md, 1.

Frozen: the LM. Trained: `prompt/vectors` [P, D], one prompt for all texts, or [N, P, D], one for
each of N data sets.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Prompts, Tree
from frozen_jax.methods.late_prompt import LatePrompt, late_layer
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.settings import PromptSettings

_KEY_NUMBER = 2**31 - 1  # far from the small numbers that NNX folds into the same key


@dataclasses.dataclass(frozen=True)
class PromptTuning(SinglePass):
  """The single-pass LM after a soft prompt.

  `settings`: how long the prompt is and where it starts. `num_tasks`: N, where each data set has a
  prompt of its own, 0 for one prompt for all. A text of none of the data sets gets the mean of
  their prompts.
  """

  settings: PromptSettings = dataclasses.field(compare=False)
  num_tasks: int = 0

  name: ClassVar[str] = "prompt_tuning"
  sections: ClassVar[Mapping[str, type]] = {"prompt": PromptSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"prompt": 0.02}
  no_decay: ClassVar[tuple[str, ...]] = ("prompt/.*",)

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "PromptTuning":
    """See `core.types.Method.build`."""
    settings = sections["prompt"]
    late = late_layer(base, settings)
    kind = LatePromptTuning if late else cls
    num_tasks = len(datasets) if settings.per_task else 0
    return kind(base.config, settings, num_tasks, remat=remat, **late)

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`."""
    return {"prompt": soft_prompt.position()}

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"prompt": {"vectors": ...}}; all data sets start from one prompt."""
    start = initial_prompt(base, self.settings, key)
    if self.num_tasks:
      start = jnp.broadcast_to(start, (self.num_tasks, *start.shape))
    return {"prompt": soft_prompt.prompt_params(start)}

  def prompt(
    self, trainable: Tree, frozen: Tree, prompts: Prompts
  ) -> Float[Array, "*B P D"] | None:
    """See `SinglePass.prompt`."""
    del frozen
    vectors = soft_prompt.prompt_vectors(trainable, "prompt")
    if not self.num_tasks:
      return vectors
    task = jnp.asarray(prompts["task"])
    task_vectors = jnp.take(vectors, jnp.maximum(task - 1, 0), axis=0)
    return jnp.where(task[:, None, None] > 0, task_vectors, vectors.mean(axis=0))

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    del frozen
    return trainable["prompt"]["vectors"].shape[-2]


@dataclasses.dataclass(frozen=True)
class LatePromptTuning(LatePrompt, PromptTuning):
  """Prompt tuning within the stack (Liu et al., 2022), with the trained tree of `PromptTuning`."""

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"prompt": {"vectors": ...}}; a prompt starts as its own states there."""
    start = self.start_vectors(base, initial_prompt(base, self.settings, key))
    tasks = (self.num_tasks,) if self.num_tasks else ()
    return {"prompt": soft_prompt.prompt_params(jnp.broadcast_to(start, (*tasks, *start.shape)))}


def initial_prompt(base: Base, settings: PromptSettings, key: PRNGKeyArray) -> Float[Array, "P D"]:
  """Where a prompt starts: embeddings of `settings.text`, or without one of random tokens.

  The same key gives the same tokens, whatever else a method draws with it. Raises UserError for a
  text where the model has no tokenizer.
  """
  if not settings.text:
    prompt_key = jax.random.fold_in(key, _KEY_NUMBER)
    ids = soft_prompt.random_token_ids(prompt_key, base.config.vocab_size, settings.length)
  elif base.tokenizer is None:
    raise UserError(
      "prompt.text needs a tokenizer and this model has none; set --config.prompt.text=''"
    )
  else:
    ids = base.tokenizer(settings.text, add_special_tokens=False)["input_ids"]
    ids = soft_prompt.repeat_to_length(ids, settings.length)
  return base.embed(ids[None])[0].astype(jnp.float32)
