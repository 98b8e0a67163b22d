"""The `prompt` section of a config, which most methods read; what sections of networks check.

Imports no jax: configs name it.
"""

import dataclasses
from typing import Any, ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class PromptSettings(Section):
  """The soft prompt."""

  section: ClassVar[str] = "prompt"

  length: int = setting(16, "trained vectors before the text", at_least=1)
  per_task: bool = setting(False, "a prompt for each data set that the rows name, not one for all")
  text: str = setting(
    "Answer the question about the world with a short fact: the name of a place, a people, a"
    " language or a currency.",
    "the prompt starts as the embeddings of this; empty: of random tokens",
  )


def check_heads(network: Any) -> None:
  """UserError for a section of a network whose `width` its `heads` do not divide."""
  if network.width % network.heads:
    raise UserError(
      f"config.{network.section}.width is {network.width}, which {network.section}.heads="
      f"{network.heads} does not divide; choose a multiple"
    )
