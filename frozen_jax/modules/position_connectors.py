"""Connectors that work position by position: only the frozen layers can carry anything across.

Each has the interface of `modules.connector.Connector` without a cache. What is read is normalised
at every position, because the residual stream of middle layers has a few enormous entries. All
start as a map to zero.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class JunctionInput(NamedTuple):
  """What a Connector may read at each position.

  read      the states that a pass handed on
  below     the stream that the next pass starts from
  expected  the mean embedding of the tokens that `read` predicts, where the Connector asks for it
  """

  read: Float[Array, "B T D"]
  below: Float[Array, "B T D"]
  expected: Float[Array, "B T D"] | None = None


class PositionConnector(nnx.Module):
  """A map of each position, float32 throughout."""

  reads_tokens = False  # whether it reads `JunctionInput.expected`

  @abc.abstractmethod
  def output(self, given: JunctionInput) -> Float[Array, "B T D"]:
    """What is added to `below`."""


class LinearConnector(PositionConnector):
  """One matrix [D, D], applied to normalised states and scaled to the stream that it joins."""

  def __init__(self, width: int, output_scale: float):
    self.output_scale = output_scale
    self.kernel = _zero_matrix(width)

  def output(self, given: JunctionInput) -> Float[Array, "B T D"]:
    """See `PositionConnector.output`."""
    return _mapped((given.read, self.kernel)) * self.output_scale


class ConcatConnector(PositionConnector):
  """Two matrices [D, D]: of the states, and of the stream that is there (Geiping et al. 2025).

  Together they are one of the two joined, [2D, D]; with the second one alone it is a
  `LinearConnector` in one pass.
  """

  def __init__(self, width: int, output_scale: float):
    self.output_scale = output_scale
    self.states, self.stream = _zero_matrix(width), _zero_matrix(width)

  def output(self, given: JunctionInput) -> Float[Array, "B T D"]:
    """See `PositionConnector.output`."""
    mapped = _mapped((given.read, self.states), (given.below, self.stream))
    return mapped * self.output_scale


class MixConnector(PositionConnector):
  """A trained share of the way from the stream to the states, which get the stream's size.

  `gain` [D] is alpha of adaptive recirculation (Mozer et al. 2026), one for each feature.
  """

  def __init__(self, width: int):
    self.gain = nnx.Param(jnp.zeros((width,), jnp.float32))

  def output(self, given: JunctionInput) -> Float[Array, "B T D"]:
    """See `PositionConnector.output`."""
    return mix(given.read, given.below, self.gain[...])


class TokensConnector(PositionConnector):
  """Two matrices: of the states, and of the tokens read off them (DiscoLoop, Fu et al. 2026)."""

  reads_tokens = True

  def __init__(self, width: int, output_scale: float):
    self.output_scale = output_scale
    self.states, self.tokens = _zero_matrix(width), _zero_matrix(width)

  def output(self, given: JunctionInput) -> Float[Array, "B T D"]:
    """See `PositionConnector.output`."""
    mapped = _mapped((given.read, self.states), (given.expected, self.tokens))
    return mapped * self.output_scale


def _zero_matrix(width: int) -> nnx.Param:
  return nnx.Param(jnp.zeros((width, width), jnp.float32))


def _mapped(*pairs: tuple[Float[Array, "B T D"], nnx.Param]) -> Float[Array, "B T D"]:
  """The sum of normalised inputs, each times its matrix [D, D]."""
  return jnp.asarray(sum(normalised(states) @ matrix[...] for states, matrix in pairs))


def mix(
  read: Float[Array, "B T D"],
  below: Float[Array, "B T D"],
  gain: Float[Array, "..."] | float,
) -> Float[Array, "B T D"]:
  """What moves `below` by the share `gain` towards `read`, scaled to the size of `below`."""
  below = below.astype(jnp.float32)
  size = jnp.sqrt(jnp.mean(below * below, axis=-1, keepdims=True))
  return gain * (normalised(read) * size - below)


def normalised(x: Float[Array, "*N D"] | np.ndarray) -> Float[Array, "*N D"]:
  """Each position with a root mean square of one, float32."""
  x = jnp.asarray(x).astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
