"""The works that both sides of `training_step` do: the same model, text, prompt and targets."""

import dataclasses

import numpy as np

MODEL = "smollm2-135m-instruct"
PROMPT, ANSWER = 20, 8
LEARNING_RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class Shape:
  """rows of so many tokens; targets: so many at the end of each are to be predicted. shortest:
  rows have from so many tokens on, and padding; 0: none has."""

  rows: int
  tokens: int
  targets: int
  shortest: int = 0


SHAPES = {
  "all": Shape(4, 236, 235),
  "answers": Shape(4, 236, ANSWER),
  "short": Shape(32, 24, ANSWER),  # as questions of a few words are
  "padded": Shape(32, 32, ANSWER, shortest=12),
}


@dataclasses.dataclass(frozen=True)
class Work:
  """tokens: int [rows, T]. lengths: int [rows], how many of them are real. prompt: float32
  [PROMPT, D], where it starts. targets: of each row the last so many real tokens are to be
  predicted."""

  tokens: np.ndarray
  lengths: np.ndarray
  prompt: np.ndarray
  targets: int

  @property
  def mask(self) -> np.ndarray:
    """int [rows, T], 1 for real tokens."""
    return (np.arange(self.tokens.shape[1]) < self.lengths[:, None]).astype(int)


def make(vocab_size: int, width: int, name: str) -> Work:
  """A work by its name in `SHAPES`: the same numbers in every process."""
  shape, random = SHAPES[name], np.random.default_rng(0)
  tokens = random.integers(3, vocab_size, (shape.rows, shape.tokens))
  prompt = random.normal(0, 0.1, (PROMPT, width)).astype(np.float32)
  shortest = shape.shortest or shape.tokens
  lengths = np.random.default_rng(1).integers(shortest, shape.tokens + 1, shape.rows)
  return Work(tokens, lengths, prompt, shape.targets)
