"""The `recursion` section of a config, and the numbers of layers that it names.

Imports no jax: configs name it.
"""

import dataclasses
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError
from frozen_jax.modules.settings import LAYER, check_heads, layers_between, written_layer

CONNECTORS = ("transformer", "linear", "concat", "mix", "tokens", "none")
_FIRST_PROMPTS = ("none", "frozen", "trained")
_LAST_PROMPTS = ("none", "trained")


@dataclasses.dataclass(frozen=True)
class ConnectorSettings(Section):
  """The network between two passes."""

  section: ClassVar[str] = "recursion.connector"

  kind: str = setting(
    "transformer",
    "transformer: causal, of the paper; linear, concat, mix, tokens: by position; none: no network",
    choices=CONNECTORS,
  )
  width: int = setting(256, "of a transformer", at_least=1)
  layers: int = setting(2, "of a transformer", at_least=1)
  heads: int = setting(4, "attention heads of a transformer", of_weights=True, at_least=1)
  dropout: float = setting(0.1, "share that a transformer drops in training", at_least=0, below=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_heads(self)


@dataclasses.dataclass(frozen=True)
class RecursionSettings(Section):
  """The recursive LM."""

  section: ClassVar[str] = "recursion"

  passes: int = setting(
    2, "how often the LM runs; 1: a Connector between its layers and no second pass", at_least=1
  )
  predict_passes: int = setting(
    0,
    "how often a finished model of two or more passes runs: read by evaluate, predict and export;"
    " 0: as often as in training",
    affects_result=False,
    at_least=0,
  )
  read: str = setting(
    "final", "how many layers a pass has run where its states are read", pattern=LAYER
  )
  write: str = setting(
    "embeddings",
    "how many layers run once, before the passes start; the Connector writes there",
    pattern=LAYER,
  )
  input_skip: bool = setting(
    True, "add what is written to the stream that is there; False: the paper's plain form"
  )
  first_prompt: str = setting(
    "frozen",
    "before the first pass; frozen: the tuned one",
    choices=_FIRST_PROMPTS,
  )
  last_prompt: str = setting("trained", "before the later passes", choices=_LAST_PROMPTS)
  connector: ConnectorSettings = setting(ConnectorSettings(), "the network between two passes")
  cache_first_pass: bool = setting(
    False,
    "keep what is not trained of each text (states of the shared layers and of the first pass) in"
    " memory and on disk: later epochs cost less; needs a first prompt that is not trained",
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.cache_first_pass and self.first_prompt == "trained":
      raise UserError(
        "recursion.cache_first_pass keeps what a trained first prompt changes; set it to False, or"
        " recursion.first_prompt to frozen or none"
      )
    if not self.input_skip and self.connector.kind not in ("transformer", "none"):
      raise UserError(
        f"recursion.connector.kind={self.connector.kind} starts from zero, so that with"
        " recursion.input_skip=False a pass would read nothing; set it to True, or the kind to"
        " transformer"
      )
    if self.predict_passes == 1:
      raise UserError(
        "recursion.predict_passes is 1, in which a Connector that was trained between passes has no"
        " place; give 2 or more, or 0 for as many as in training"
      )
    if self.connector.kind == "none" and self.passes > 1:
      raise UserError(
        "recursion.connector.kind=none joins no passes; set recursion.passes=1 (a prompt at layer"
        " recursion.write alone), or another kind"
      )

  def as_used(self, given: "RecursionSettings") -> "RecursionSettings":
    """With `given.predict_passes` passes; one pass stays one: there is no second to repeat."""
    if not given.predict_passes or self.passes == 1:
      return self
    return dataclasses.replace(self, passes=given.predict_passes)


def layers_of(settings: RecursionSettings, num_layers: int) -> tuple[int, int | None]:
  """Where a model of so many layers is written to and read: layers run before; None: all of them.

  Raises UserError for layers that it does not have, and for a pass that would read below where it
  starts.
  """
  if settings.passes == 1:
    return written_layer(settings.write, num_layers, "recursion.write"), None
  return layers_between(settings, "write", "read", num_layers)
