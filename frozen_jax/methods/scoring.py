"""Continuation scoring: how likely each of several choices is after one prompt, read once.

The choices of a row are read together as one sequence of A (M - 1) new tokens after the prompt's
cache (`backbones.decoder.hidden_after_cache`): each token attends to the prompt and to the earlier
tokens of its own choice, and its position counts from the end of the prompt. The last token of a
choice is predicted and never read; the first tokens are all predicted from the prompt's last
position.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder import logits
from frozen_jax.backbones.loss import target_log_likelihood
from frozen_jax.core.types import Tree


class Continuations(NamedTuple):
  """The choices of each row as one sequence; see `backbones.decoder.hidden_after_cache`.

  choices: how many there are, of equally many tokens with their padding.
  """

  tokens: Int[Array, "B new"]
  position_ids: Int[Array, "B new"]
  attention_mask: Bool[Array, "B new new"]
  choices: int


def longest_choice(mask: Int[Array | np.ndarray, "B A M"]) -> Int[Array, "B"]:
  """How many tokens the longest choice of each row has."""
  return jnp.asarray(mask).astype(jnp.int32).sum(axis=2).max(axis=1)


def choice_log_likelihoods(
  params: Tree,
  decoder: DecoderConfig,
  last_hidden: Float[Array, "B 1 D"],
  choices: Int[Array | np.ndarray, "B A M"],
  mask: Int[Array | np.ndarray, "B A M"],
  hidden_of: Callable[[Continuations], Float[Array, "B new D"]],
) -> Float[Array, "B A"]:
  """See `core.types.Method.log_likelihoods`.

  `last_hidden`: the hidden state at each prompt's last real position. `hidden_of`: the hidden
  states of continuations of the prompts; not called where every choice has one token.
  """
  rows, count, length = choices.shape
  real = jnp.asarray(mask) > 0
  next_token = jax.nn.log_softmax(logits(params, decoder, last_hidden)[:, 0])  # [B, V]
  first = jnp.take_along_axis(next_token, choices[:, :, 0], axis=1)
  total = jnp.where(real[:, :, 0], first, -jnp.inf)
  if length == 1:
    return total
  hidden = hidden_of(_flatten_choices(jnp.asarray(choices)[:, :, :-1], real[:, :, :-1]))
  targets = choices[:, :, 1:].reshape(rows, -1)
  rest, _ = target_log_likelihood(params, decoder, hidden, targets)
  rest = rest.reshape(rows, count, length - 1)
  return total + jnp.where(real[:, :, 1:], rest, 0.0).sum(axis=2)


def _flatten_choices(tokens: Int[Array, "B A _"], real: Bool[Array, "B A _"]) -> Continuations:
  """Tokens to read, of which those in `real` are no padding; padded on the right."""
  rows, count, length = tokens.shape
  flat = (rows, count * length)
  # Padding shares the position of the last real token: none is beyond the context.
  position_ids = jnp.maximum(jnp.cumsum(real.astype(jnp.int32), axis=2) - 1, 0)
  owner = jnp.repeat(jnp.arange(count), length)
  causal = jnp.tri(count * length, dtype=bool)
  attention_mask = (owner[:, None] == owner) & causal & real.reshape(flat)[:, None, :]
  return Continuations(tokens.reshape(flat), position_ids.reshape(flat), attention_mask, count)
