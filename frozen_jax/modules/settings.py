"""The `prompt` section of a config, which most methods read; what sections of networks check.

Imports no jax: configs name it.
"""

import dataclasses
from typing import Any, ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError

# Of settings that name a layer: how many have run.
LAYER = (
  r"final|embeddings|\d+|0?\.\d+|1\.0*",
  "a number of layers, a fraction of the depth such as 0.2, embeddings or final",
)


@dataclasses.dataclass(frozen=True)
class PromptSettings(Section):
  """The soft prompt."""

  section: ClassVar[str] = "prompt"

  length: int = setting(16, "trained vectors before the text", at_least=1)
  layer: str = setting(
    "embeddings",
    "how many layers run before the prompt joins the text: a number, or a fraction of the depth",
    pattern=LAYER,
  )
  cache_states: bool = setting(
    False,
    "of a prompt within the stack: keep what the layers below leave of each text in memory and on"
    " disk, so that later epochs run the layers above alone",
  )
  per_task: bool = setting(False, "a prompt for each data set that the rows name, not one for all")
  text: str = setting(
    "Answer the question about the world with a short fact: the name of a place, a people, a"
    " language or a currency.",
    "the prompt starts as the embeddings of this; empty: of random tokens",
  )


def check_at_input(settings: PromptSettings, method: str, instead: str = "") -> None:
  """UserError for a prompt within the stack, of a method that has none; instead: what would do."""
  if settings.layer not in ("embeddings", "0"):
    raise UserError(
      f"config.prompt.layer is {settings.layer!r}, which {method} does not have; set"
      f" prompt.layer=embeddings{instead and f', and {instead}'}"
    )


def layer_number(text: str, num_layers: int, key: str) -> int:
  """How many layers have run where a setting says: a count, a fraction of the depth, or a name.

  Raises UserError for more than the model has.
  """
  names = {"embeddings": 0, "final": num_layers}
  if text in names:
    return names[text]
  number = round(float(text) * num_layers) if "." in text else int(text)
  if number > num_layers:
    raise UserError(f"config.{key} is {text!r}; this model has {num_layers} layers")
  return number


def written_layer(text: str, num_layers: int, key: str) -> int:
  """`layer_number` of a place after which some layer runs.

  Raises UserError for the last one, too.
  """
  number = layer_number(text, num_layers, key)
  if number == num_layers:
    raise UserError(
      f"config.{key} is {text!r}: no layer would run after it; this model has {num_layers} layers,"
      " choose fewer"
    )
  return number


def layers_between(section: Any, start: str, stop: str, num_layers: int) -> tuple[int, int | None]:
  """Where the layers between two settings of a section start and stop; None: after all of them.

  Raises UserError for layers that the model does not have, and where none is between.
  """
  keys = f"{section.section}.{start}", f"{section.section}.{stop}"
  first = written_layer(getattr(section, start), num_layers, keys[0])
  last = layer_number(getattr(section, stop), num_layers, keys[1])
  if last <= first:
    raise UserError(
      f"config.{keys[1]} is {getattr(section, stop)!r} and {keys[0]} {getattr(section, start)!r}:"
      " no layer is between; choose a higher one for the first"
    )
  return first, None if last == num_layers else last


def check_heads(network: Any) -> None:
  """UserError for a section of a network whose `width` its `heads` do not divide."""
  if network.width % network.heads:
    raise UserError(
      f"config.{network.section}.width is {network.width}, which {network.section}.heads="
      f"{network.heads} does not divide; choose a multiple"
    )
