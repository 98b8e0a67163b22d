"""The `prompt` section of a config, which most methods read. Imports no jax: configs name it."""

import dataclasses

from frozen_jax.config.section import setting


@dataclasses.dataclass(frozen=True)
class PromptSettings:
  """The soft prompt."""

  length: int = setting(16, "trained vectors before the text")
  per_task: bool = setting(False, "a prompt for each data set that the rows name, not one for all")
  text: str = setting(
    "Answer the question about the world with a short fact: the name of a place, a people, a"
    " language or a currency.",
    "the prompt starts as the embeddings of this; empty: of random tokens",
  )
