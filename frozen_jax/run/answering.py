"""Answers of a system to questions, and how they stand in a file."""

from collections.abc import Sequence
from typing import Any

from frozen_jax.data.examples import Example
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.decoding.requests import Sampling
from frozen_jax.evaluation.generation import check_length, generate_ids
from frozen_jax.run import options as experiment
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System

_BESIDE = (
  "dataset",
  "template",
  "choices",
  "passages",
  "candidates",
)  # what else an answer is told by

Rows = list[dict[str, Any]]


def answer(
  system: System, lm: FrozenLM, task: QuestionTask, examples: Sequence[Example]
) -> list[str]:
  """Greedily decoded answers to examples."""
  evaluate = system.options["evaluate"]
  prompts = [task.prompt(example) for example in examples]
  sampling = Sampling(evaluate["max_new_tokens"])
  new = generate_ids(
    system.method, system.trained, system.frozen(lm), lm, prompts, sampling, evaluate["batch_size"]
  )
  return [lm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]


def check_questions(
  options: experiment.Options,
  lm: FrozenLM,
  task: QuestionTask,
  examples: Sequence[Example],
  where: str,
) -> None:
  """UserError naming the first of the examples that is too long for the context."""
  new, taken = options["evaluate"]["max_new_tokens"], options["prompt"]["length"]
  for example in examples:
    length = len(task.prompt(example).tokens)
    what = f"the question with id {example['id']} of {where}"
    check_length(what, length, new, taken, lm.config.context)


def prediction_rows(
  task: QuestionTask, examples: Sequence[Example], predictions: Sequence[str]
) -> Rows:
  """`{"id", "input", "prediction", "answers"?}` for each example, and what else names it."""
  rows = []
  for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
    row = {"id": example.get("id", str(index)), "input": task.question(example)}
    row["prediction"] = prediction
    if accepted := task.answers(example):
      row["answers"] = list(accepted)
    row |= {key: example[key] for key in _BESIDE if example.get(key)}
    rows.append(row)
  return rows
