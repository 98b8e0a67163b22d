"""The works that both sides of `training_step` do: the same model, text, prompt and targets."""

import dataclasses

import numpy as np

MODEL = "smollm2-135m-instruct"
PROMPT, ANSWER = 20, 8
LEARNING_RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class Shape:
  """rows of so many tokens; targets: so many at the end of each are to be predicted."""

  rows: int
  tokens: int
  targets: int


SHAPES = {
  "all": Shape(4, 236, 235),
  "answers": Shape(4, 236, ANSWER),
  "short": Shape(32, 24, ANSWER),  # as questions of a few words are
}


@dataclasses.dataclass(frozen=True)
class Work:
  """tokens: int [rows, T]. prompt: float32 [PROMPT, D], where it starts. targets: of each row the
  last so many tokens are to be predicted."""

  tokens: np.ndarray
  prompt: np.ndarray
  targets: int


def make(vocab_size: int, width: int, name: str) -> Work:
  """A work by its name in `SHAPES`: the same numbers in every process."""
  shape, random = SHAPES[name], np.random.default_rng(0)
  tokens = random.integers(3, vocab_size, (shape.rows, shape.tokens))
  prompt = random.normal(0, 0.1, (PROMPT, width)).astype(np.float32)
  return Work(tokens, prompt, shape.targets)
