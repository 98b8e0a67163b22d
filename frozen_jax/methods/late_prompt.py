"""Late prompts (Liu et al., 2022): vectors before the text within the stack, not at its input.

The layers below the prompt read the text alone. They run once, nothing is differentiated in them,
and what they leave of a text may be kept over epochs. Vectors are trained in the size of the token
embeddings, so that the rates of ordinary prompts serve, and joined in the size of the stream.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.core.types import Base, Prompts, Tree
from frozen_jax.methods.layer_passes import Added, Junction, LayerPasses, NoConnector
from frozen_jax.methods.layered import Layered
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.settings import PromptSettings, written_layer


@dataclasses.dataclass(frozen=True)
class LatePrompt(Layered, SinglePass):
  """A method of one pass whose prompt joins the text within the stack.

  prompt_layer       how many layers run before
  prompt_unit        how much larger the stream is there than the token embeddings
  caches_first_pass  whether batches hold the stream of their texts there
  """

  prompt_layer: int = dataclasses.field(default=1, kw_only=True)
  prompt_unit: float = dataclasses.field(default=1.0, kw_only=True)
  caches_first_pass: bool = dataclasses.field(default=False, compare=False, kw_only=True)

  @property
  def layers(self) -> LayerPasses:
    """The layers below the prompt, and those above."""
    return LayerPasses(self.decoder, self.prompt_layer, passes=1, remat=self.remat)

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`: all that makes the prompt acts where it joins."""
    return dict.fromkeys(self.learning_rates, soft_prompt.position(self.prompt_layer))

  def added(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, key: PRNGKeyArray | None
  ) -> Added:
    """See `Layered.added`."""
    del key

    def later_prompt(below, first):
      del first
      vectors = self.late_vectors(trainable, frozen, prompts, below)
      return None if vectors is None else vectors * self.prompt_unit

    return Added(None, later_prompt, NoConnector())

  def junction(self, trainable: Tree, frozen: Tree, key: PRNGKeyArray | None = None) -> Junction:
    """See `Layered.junction`."""
    del trainable, frozen, key
    return NoConnector()

  def late_vectors(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, below: Float[Array, "B T D"]
  ) -> Float[Array, "*B P D"] | None:
    """The vectors in the size of embeddings; below: the stream of the texts where they join it."""
    del below
    return self.prompt(trainable, frozen, prompts)

  def start_vectors(self, base: Base, prompt: Float[Array, "P D"]) -> Float[Array, "P D"]:
    """The vectors whose states, where they join, are those of a prompt at the input."""
    states = self.layers.prompt_below(base.params, prompt)
    return states.astype(jnp.float32) / self.prompt_unit


def late_layer(base: Base, settings: PromptSettings) -> dict[str, Any]:
  """Fields of `LatePrompt` for a prompt within the stack; {} for one at the embeddings.

  Raises UserError for a layer that the LM does not have.
  """
  layer = written_layer(settings.layer, base.config.layers, "prompt.layer")
  if not layer:
    return {}
  return {
    "prompt_layer": layer,
    "prompt_unit": base.stream_rms(layer) / base.embedding_rms,
    "caches_first_pass": settings.cache_states,
  }
