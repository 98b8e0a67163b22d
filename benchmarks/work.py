"""The work that both sides of `training_step` do: the same model, text, prompt and targets."""

import dataclasses

import numpy as np

MODEL = "smollm2-135m-instruct"
ROWS, PROMPT, TEXT, ANSWER = 4, 20, 236, 8
LEARNING_RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class Work:
  """tokens: int [ROWS, TEXT]. prompt: float32 [PROMPT, D], where it starts. targets: of each row
  the last so many tokens are to be predicted."""

  tokens: np.ndarray
  prompt: np.ndarray
  targets: int


def make(vocab_size: int, width: int, answers_only: bool) -> Work:
  """The same numbers in every process; with `answers_only` 8 targets a row, else all 235."""
  random = np.random.default_rng(0)
  tokens = random.integers(3, vocab_size, (ROWS, TEXT))
  prompt = random.normal(0, 0.1, (PROMPT, width)).astype(np.float32)
  return Work(tokens, prompt, ANSWER if answers_only else TEXT - 1)
