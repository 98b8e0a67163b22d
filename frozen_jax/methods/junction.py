"""Junctions between two passes that have a trained Connector; see `layer_passes.Junction`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.linear import project
from frozen_jax.core.types import Tree
from frozen_jax.methods.layer_passes import PositionJunction
from frozen_jax.modules.connector import Connector
from frozen_jax.modules.position_connectors import JunctionInput, PositionConnector


@dataclasses.dataclass(frozen=True)
class CausalJunction:
  """The paper's Connector, which attends to earlier positions.

  input_skip  whether its output is added to the stream that the pass starts from
  key         drives dropout; None: none
  """

  connector: Connector
  input_skip: bool
  key: PRNGKeyArray | None = None

  def text(
    self,
    index: int,
    handed: Float[Array, "B T D"],
    below: Float[Array, "B T D"],
    mask: Int[Array | np.ndarray, "B T"],
    free_slots: int,
  ) -> tuple[Float[Array, "B T D"], Tree]:
    """See `Junction.text`."""
    key = None if self.key is None else jax.random.fold_in(self.key, index + 1)
    output, cache = self.connector(handed, mask, key, free_slots)
    return _joined(output, below, self.input_skip), cache

  def step(
    self, handed: Float[Array, "B 1 D"], below: Float[Array, "B 1 D"], cache: Tree
  ) -> tuple[Float[Array, "B 1 D"], Tree]:
    """See `Junction.step`."""
    output, cache = self.connector.step(handed, cache)
    return _joined(output, below, self.input_skip), cache

  def after_cache(
    self,
    handed: Float[Array, "B N D"],
    below: Float[Array, "B N D"],
    cache: Tree,
    mask: Bool[Array, "B N N"],
  ) -> Float[Array, "B N D"]:
    """See `Junction.after_cache`."""
    output = self.connector.hidden_after_cache(handed, cache, mask)
    return _joined(output, below, self.input_skip)


@dataclasses.dataclass(frozen=True)
class ConnectorByPosition(PositionJunction):
  """A Connector that works position by position; its output is added to the stream.

  is_normed: whether what is read went through the final norm.
  """

  connector: PositionConnector
  params: Tree
  decoder: DecoderConfig
  is_normed: bool

  def next_input(
    self, handed: Float[Array, "B T D"], below: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """See `PositionJunction.next_input`."""
    expected = self._expected(handed) if self.connector.reads_tokens else None
    output = self.connector.output(JunctionInput(handed, below, expected))
    return _joined(output, below, input_skip=True)

  def _expected(self, handed: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The mean embedding of the next token as read off states, by the LM's own head."""
    states = handed if self.is_normed else lm.output_states(self.params, self.decoder, handed)
    probabilities = jax.nn.softmax(lm.logits(self.params, self.decoder, states))
    return project(probabilities, self.params["embed"]["tokens"], 0)


def _joined(
  output: Float[Array, "B T D"], below: Float[Array, "B T D"], input_skip: bool
) -> Float[Array, "B T D"]:
  """The next pass's input, in the dtype of the stream that it takes the place of."""
  if input_skip:
    output = output + below.astype(jnp.float32)
  return output.astype(below.dtype)
