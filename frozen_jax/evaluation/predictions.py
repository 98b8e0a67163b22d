"""Predictions as rows of a JSON-lines file, and the check that questions fit the context."""

from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core.json_row import Row
from frozen_jax.data.examples import Example
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.models.generation import check_length

# Keys of an example that its prediction has too, if they are not empty.
_COPIED = (
  "original_question",
  "dataset",
  "template",
  "kind",
  "choices",
  "passages",
  "candidates",
)


def prediction_rows(
  task: QuestionTask,
  examples: Sequence[Example],
  predictions: Sequence[str],
  scores: Sequence[Mapping[str, float]] | None = None,
) -> list[Row]:
  """{"id", "input", "prediction", "answers"?, "scores"?} for each example, and its `_COPIED` keys.

  scores: of each prediction, in percent. Raises ValueError for another number of predictions or
  scores than examples.
  """
  rows: list[Row] = []
  for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
    row = {"id": example.get("id", str(index)), "input": task.question(example)}
    row["prediction"] = prediction
    if accepted := task.answers(example):
      row["answers"] = list(accepted)
    row |= {key: example[key] for key in _COPIED if example.get(key)}
    rows.append(row)
  if scores is None:
    return rows
  return [row | {"scores": dict(of_row)} for row, of_row in zip(rows, scores, strict=True)]


def check_question_lengths(
  lm: Any,
  task: QuestionTask,
  examples: Sequence[Example],
  source_name: str,
  max_new_tokens: int,
  prompt_length: int,
) -> None:
  """UserError naming the first of the examples that is too long for the context.

  lm: the frozen LM. prompt_length: positions of the context that a trained prompt takes.
  """
  for example in examples:
    length = len(task.prompt(example).tokens)
    what = f"the question with id {example['id']} of {source_name}"
    check_length(what, length, max_new_tokens, prompt_length, lm.config.context)
