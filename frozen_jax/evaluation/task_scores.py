"""Scores on data of many tasks: by data set and prompt template (docs/paper.md, 2).

A row with choices is scored by rank classification, any other by the text that is generated.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from frozen_jax.core.json_row import Row
from frozen_jax.data.examples import Example
from frozen_jax.data.mixture import stratified_sample
from frozen_jax.data.sources import Source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation.answers import grade_free_form
from frozen_jax.evaluation.by_task import RowScores, scores_by_task
from frozen_jax.evaluation.predictions import prediction_rows
from frozen_jax.evaluation.rank_classification import rank
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.models.choice_scoring import ChoiceQuestion, choice_log_likelihoods
from frozen_jax.models.tuned_model import TunedModel


class _Prediction(NamedTuple):
  """The text, and its scores in percent."""

  text: str
  scores: dict[str, float]


def score_tasks(
  model: TunedModel,
  source: Source,
  task: QuestionTask,
  settings: EvaluateSettings,
  prompt_length: int,
) -> tuple[dict[str, Any], list[Row]]:
  """Scores a model on `settings.max_examples` rows that represent the whole source.

  prompt_length: positions of the context that are left free for a trained prompt.

  Returns (the table of `evaluation.by_task`, with `skipped`, the rows whose prompt is longer than
  the task's last length or leaves an answer no room in the context, and `left_out`, those of the
  whole source that have no target; rows of `evaluation.predictions`).
  """
  selected = [source[int(index)] for index in stratified_sample(source, settings.max_examples)]
  context = model.lm.config.context - prompt_length
  examples = [one for one in selected if _fits(task, one, settings.max_new_tokens, context)]
  predictions = _predictions(model, task, examples, settings)
  table = scores_by_task(
    RowScores(example.get("dataset") or source.name, example.get("template") or "", scores)
    for example, (_, scores) in zip(examples, predictions, strict=True)
  )
  table |= {"skipped": len(selected) - len(examples), "left_out": source.num_without_target}
  texts, scores = [one.text for one in predictions], [one.scores for one in predictions]
  return table, prediction_rows(task, examples, texts, scores)


def _fits(task: QuestionTask, example: Example, max_new_tokens: int, context: int) -> bool:
  """Whether a model can read a row and answer it within `context` tokens."""
  length = len(task.prompt(example).tokens)
  if example.get("choices"):
    max_new_tokens = max(map(len, task.choices(example)))
  return length <= task.lengths[-1] and length + max_new_tokens <= context


def _predictions(
  model: TunedModel, task: QuestionTask, examples: Sequence[Example], settings: EvaluateSettings
) -> list[_Prediction]:
  """The prediction for each example, in their order."""
  with_choices = [index for index, example in enumerate(examples) if example.get("choices")]
  without = [index for index, example in enumerate(examples) if not example.get("choices")]
  ranked = _rank_choices(model, task, [examples[index] for index in with_choices], settings)
  generated = _generate(model, task, [examples[index] for index in without])
  by_index = dict(zip(with_choices, ranked, strict=True))
  by_index |= dict(zip(without, generated, strict=True))
  return [by_index[index] for index in range(len(examples))]


def _rank_choices(
  model: TunedModel, task: QuestionTask, examples: Sequence[Example], settings: EvaluateSettings
) -> list[_Prediction]:
  """The choice of each example by rank classification, and its accuracy."""
  questions = [
    ChoiceQuestion(
      task.prompt(example),
      task.choices(example),
      [len(choice.encode()) for choice in example["choices"]],
      [i for i, choice in enumerate(example["choices"]) if choice in task.answers(example)],
    )
    for example in examples
  ]
  log_likelihoods = choice_log_likelihoods(model, questions, settings.batch_size)
  ranking = rank(questions, log_likelihoods, settings.normalisation)
  return [
    _Prediction(example["choices"][index], {"accuracy": 100.0 * correct})
    for example, index, correct in zip(examples, ranking.predicted, ranking.correct, strict=True)
  ]


def _generate(
  model: TunedModel, task: QuestionTask, examples: Sequence[Example]
) -> list[_Prediction]:
  """The answer to each example, scored against the accepted ones."""
  return [
    _Prediction(answer, grade_free_form(answer, task.answers(example)))
    for example, answer in zip(examples, model.answer(examples), strict=True)
  ]
