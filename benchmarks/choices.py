"""Either side of `rank_classification`: `python -m benchmarks.choices SIDE DATA ROWS RESULT`.

SIDE is `side_by_side` (ours) or `one_by_one`: what a user would write first, a loop in which each
choice is put after its prompt and goes through `lm.logits` alone, padded to one of a few lengths.
After its first step it writes the likelihoods, and how long the step took, to RESULT (.npz).
"""

import functools
import gzip
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import worker
from benchmarks.ours import matrix_seconds
from benchmarks.work import MODEL
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.models.choice_scoring import ChoiceQuestion, choice_log_likelihoods
from frozen_jax.models.frozen_lm import FrozenLM, load_frozen

LENGTHS = (32, 64, 128, 256, 512, 1024)


def main() -> None:
  side, data, rows, result = sys.argv[1:]
  lm = load_frozen(MODEL)
  asked = questions(lm, pathlib.Path(data), int(rows))
  score: Callable[[FrozenLM, Sequence[ChoiceQuestion]], Sequence[np.ndarray]]
  score = {"side_by_side": side_by_side, "one_by_one": one_by_one}[side]

  def step() -> float:
    start = time.perf_counter()
    log_likelihoods = np.concatenate(score(lm, asked))
    if not pathlib.Path(result).exists():
      np.savez(result, log_likelihoods=log_likelihoods, first_seconds=time.perf_counter() - start)
    return -float(log_likelihoods.mean())

  worker.serve(step, functools.partial(matrix_seconds, "float32"))


def questions(lm: FrozenLM, data: pathlib.Path, count: int) -> list[ChoiceQuestion]:
  """`count` rows spread evenly over a file of rows {input, choices, labels}, gzipped or not."""
  opened = gzip.open if data.suffix == ".gz" else open
  with opened(data, "rt", encoding="utf-8") as file:
    lines = file.readlines()
  if len(lines) < count:
    raise SystemExit(f"{data} has {len(lines)} rows and {count} were asked for")
  task = QuestionTask(lm.tokenizer)
  chosen = [json.loads(lines[index * len(lines) // count]) for index in range(count)]
  return [_question(task, row) for row in chosen]


def _question(task: QuestionTask, row: dict) -> ChoiceQuestion:
  sizes = [len(choice.encode()) for choice in row["choices"]]
  return ChoiceQuestion(task.prompt(row), task.choices(row), sizes, row["labels"])


def side_by_side(lm: FrozenLM, asked: Sequence[ChoiceQuestion]) -> list[np.ndarray]:
  """Ours: the choices of a row after a prompt that is read once."""
  return choice_log_likelihoods(lm.zero_shot(), asked)


def one_by_one(lm: FrozenLM, asked: Sequence[ChoiceQuestion]) -> list[np.ndarray]:
  """The loop: every text alone, its logits at all positions."""
  found = []
  for question in asked:
    prompt = list(question.prompt.tokens)
    found.append(np.array([_alone(lm, prompt, choice) for choice in question.choices]))
  return found


def _alone(lm: FrozenLM, prompt: list[int], choice: Sequence[int]) -> float:
  text = [*prompt, *choice]
  width = next(length for length in LENGTHS if length >= len(text))
  tokens, mask = np.zeros((2, 1, width), np.int32)
  tokens[0, : len(text)], mask[0, : len(text)] = text, 1
  before = np.asarray(lm.logits(tokens, mask))[0, len(prompt) - 1 : len(text) - 1]
  before = before.astype(np.float64)
  top = before.max(axis=1)
  total = top + np.log(np.exp(before - top[:, None]).sum(axis=1))
  return float((before[np.arange(len(choice)), list(choice)] - total).sum())


if __name__ == "__main__":
  main()
