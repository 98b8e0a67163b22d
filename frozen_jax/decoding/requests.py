"""The engine's input and output: how to continue prompts, and what came of it. No device arrays."""

import dataclasses
import math
import zlib
from typing import NamedTuple

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.seeds import seed32
from frozen_jax.core.types import Prompt


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to continue a prompt.

  max_new_tokens  the most tokens of a completion
  temperature     0 is greedy
  num_samples     completions of each prompt, which is read once for all of them
  seed            of the random numbers: the same seed and prompt give the same texts, whatever else
                  is generated alongside them
  top_k           sample from the k likeliest tokens; 0: from all
  top_p           then from the fewest likeliest with this share of the probability; 1: from all
  stop            texts: a completion ends before the first that occurs in it

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
  def truncated(self) -> bool:
    """Whether top-k or top-p leave tokens out."""
    return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


class Completion(NamedTuple):
  """A finished continuation of a prompt.

  ids             the new tokens before the end token or the stop text's first token
  log_probs       of each, in nats, under the unmodified distribution (temperature 1, not truncated)
  finish_reason   "eos" (an end token), "stop" (a stop text) or "length"
  text            decoded, cut before the stop text; "" where there is no tokenizer
  total_log_prob  of all generated tokens, the end token included
  min_margin      the smallest margin of all generated tokens (`sampling.SampledTokens`): how close
                  the greedy choice was anywhere; NaN where it was not greedy
  """

  ids: list[int]
  log_probs: list[float]
  finish_reason: str
  text: str
  total_log_prob: float
  min_margin: float


def seed_of(sampling: Sampling, prompt: Prompt) -> int:
  """The 32-bit seed of a prompt's random numbers, from the sampling's seed and the tokens."""
  tokens = np.asarray(prompt.tokens, np.int64).tobytes()
  return zlib.crc32(tokens, seed32(sampling.seed))
