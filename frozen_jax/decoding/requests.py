"""What is asked of the engine, and what it gives: no model, no arrays on a device."""

import dataclasses
import math
import zlib
from typing import NamedTuple

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to continue a prompt.

  max_new_tokens  at most so many
  temperature     0 is greedy
  num_samples     continuations of each prompt, which is read once for all of them
  seed            of the random numbers: the same seed and prompt give the same texts, whatever else
                  is continued beside them
  top_k           draw among the k likeliest tokens alone; 0: among all
  top_p           then among the fewest likeliest that have this share; 1: among all
  stop            texts: a continuation ends in front of the first that comes up

  Raises UserError for values that make no sense.
  """

  max_new_tokens: int
  temperature: float = 0.0
  num_samples: int = 1
  seed: int = 0
  top_k: int = 0
  top_p: float = 1.0
  stop: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    for name in ("max_new_tokens", "num_samples"):
      if getattr(self, name) < 1:
        raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
    if not 0 <= self.temperature < math.inf:
      raise UserError(f"temperature is {self.temperature}; give 0 (greedy) or more")
    if self.top_k < 0:
      raise UserError(f"top_k is {self.top_k}; give 0 (all tokens) or more")
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p is {self.top_p}; give a share above 0, at most 1")
    if isinstance(self.stop, str) or not all(self.stop):
      raise UserError(f"stop is {self.stop!r}; give a tuple of texts, none of them empty")

  @property
  def cut(self) -> bool:
    """Whether some tokens are never drawn."""
    return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


class Continuation(NamedTuple):
  """A finished continuation.

  ids: the new tokens before the end token or the stop text's first token. log_probs: of each, in
  nats, under the model as it is. ended: by "end" (the end token), "stop" (a stop text) or "length".
  text: decoded, cut in front of the stop text; "" where there is no tokenizer. total: the
  log-probability of all that was generated, the end token included. margin: the smallest margin of
  all that was generated (`drawing.Drawn`): how close the greedy choice was anywhere; NaN where it
  was not greedy.
  """

  ids: list[int]
  log_probs: list[float]
  ended: str
  text: str
  total: float
  margin: float


def seed_of(sampling: Sampling, prompt: Prompt) -> int:
  """The 32-bit seed of a prompt's random numbers: of the sampling's seed and of its tokens."""
  tokens = np.asarray(prompt.tokens, np.int64).tobytes()
  return zlib.crc32(tokens, sampling.seed & 0xFFFFFFFF)
