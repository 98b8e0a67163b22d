"""Answers of a system to questions, and how they stand in a file."""

from collections.abc import Sequence
from typing import Any

from frozen_jax.data.examples import Example
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.decoding.requests import Continuation, Sampling
from frozen_jax.evaluation.generation import beams, check_length, continuations
from frozen_jax.run import options as experiment
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System

# What else an answer is told by.
_BESIDE = ("dataset", "template", "choices", "passages", "candidates")

Rows = list[dict[str, Any]]


def answer(
  system: System, lm: FrozenLM, task: QuestionTask, examples: Sequence[Example]
) -> list[str]:
  """Answers to examples: greedy, or the likeliest that `evaluate.num_beams` beams find."""
  evaluate = system.options["evaluate"]
  new, count = evaluate["max_new_tokens"], evaluate["num_beams"]
  if count == 1:
    found = continued(system, lm, task, examples, Sampling(new))
  else:
    prompts, rows = [task.prompt(example) for example in examples], evaluate["batch_size"]
    trees = system.method, system.trained, system.frozen(lm)
    found = beams(*trees, lm, prompts, count, new, rows)
  return [best.text.strip() for best, *_ in found]


def continued(
  system: System,
  lm: FrozenLM,
  task: QuestionTask,
  examples: Sequence[Example],
  sampling: Sampling,
) -> list[list[Continuation]]:
  """What a system writes behind each example; see `evaluation.generation.continuations`."""
  prompts, rows = [task.prompt(one) for one in examples], system.options["evaluate"]["batch_size"]
  trees = system.method, system.trained, system.frozen(lm)
  return continuations(*trees, lm, prompts, sampling, rows)


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
