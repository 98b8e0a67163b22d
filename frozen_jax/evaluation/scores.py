"""Scores of a tuned model on test data and held-out data."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from frozen_jax.core.json_row import Row
from frozen_jax.data.batches import scoring_batches
from frozen_jax.data.examples import Example
from frozen_jax.data.settings import DataSettings
from frozen_jax.data.sources import Source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.intervals import means_with_intervals
from frozen_jax.evaluation.predictions import check_question_lengths, prediction_rows
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.evaluation.task_scores import score_tasks
from frozen_jax.evaluation.teacher_forced import TeacherForced, teacher_forced
from frozen_jax.models.inputs import open_task
from frozen_jax.models.reading_cost import reading_flops
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.batch import shard_batch

MetricValues = dict[str, float | int]  # counts are whole numbers


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a tuned model.

  metrics      of `data.test`
  held_out     of each source of `data.held_out`
  by_task      of each source with several data sets: the table of `evaluation.by_task`
  predictions  for `data.test`: rows of `evaluation.predictions`
  """

  metrics: MetricValues
  held_out: dict[str, MetricValues] = dataclasses.field(default_factory=dict)
  by_task: dict[str, Any] = dataclasses.field(default_factory=dict)
  predictions: list[Row] = dataclasses.field(default_factory=list)


def score_model(
  model: TunedModel, data: DataSettings, settings: EvaluateSettings, prompt_length: int
) -> Scores:
  """Scores a model on `data.test` and on each source of `data.held_out`.

  Questions become inputs as `data` says and are answered as `settings` says, whatever the model's
  own `inputs` and `generation` are; only the data sets that have prompts of their own are the
  model's, if `data` names none.

  Args:
    model: what is scored.
    data: sources and inputs.
    settings: generation, number of examples, normalisation.
    prompt_length: positions of the context that are left free for a trained prompt: the same for
      all models that are compared.

  Returns:
    Metrics are `loss` and `perplexity`; for questions `exact_match` and `f1` of the answers with
    their 95% intervals (`evaluation.intervals`), and `accuracy` (teacher-forced); for data of many
    tasks those of `evaluation.by_task`, whose `accuracy` is that of rank classification;
    `examples`; counts of rows that were truncated or skipped; of questions of `data.test` also
    `gflop`, the 1e9 FLOPs of reading one of mean length. The predictions for questions have the
    `loss` of their targets, nats per target, and how many `targets` these are.
  """
  test = score_source(model, data, data.test, settings, prompt_length)
  held_out, by_task = {}, dict(test.by_task)
  for name in data.held_out:
    scores = score_source(model, data, name, settings, prompt_length)
    held_out[name] = scores.metrics
    by_task |= scores.by_task
  return Scores(test.metrics, held_out, by_task, test.predictions)


def score_source(
  model: TunedModel, data: DataSettings, spec: str, settings: EvaluateSettings, prompt_length: int
) -> Scores:
  """`score_model` on the one source that `spec` names, of which `metrics` are."""
  model = _with_settings(model, data, settings)
  source, task = open_task(model.lm, model.inputs, spec, prompt_length, model.method)
  size, count, one_device = settings.batch_size, settings.max_examples, model.lm.is_on_one_device
  batches = scoring_batches(source, task, size, count, leave_out_padding=one_device)
  found = teacher_forced(model.loss, batches, functools.partial(shard_batch, mesh=model.lm.mesh))
  likelihood = found.scores
  counts = {name: count for name, count in batches.counts.items() if count}
  if not isinstance(task, QuestionTask):
    return Scores(likelihood | counts)
  cost = _reading_cost(model, batches.mean_prompt) if spec == data.test else {}
  if has_tasks(source):
    table, predictions = score_tasks(model, source, task, settings, prompt_length)
    metrics = table["mean"] | {key: likelihood[key] for key in ("loss", "perplexity")}
    metrics |= {"examples": table["rows"], "skipped": table["skipped"]} | cost
    return Scores(metrics, by_task={spec: table}, predictions=predictions)
  answered = _score_questions(model, source, task, settings)
  losses = _losses(found, batches.indices)
  predictions = [row | losses.get(index, {}) for index, row in enumerate(answered.predictions)]
  return Scores(answered.metrics | likelihood | counts | cost, predictions=predictions)


def score_test_answers(
  model: TunedModel, data: DataSettings, settings: EvaluateSettings, prompt_length: int
) -> Scores:
  """Exact match and F1, with their intervals, on the questions of `data.test`; see `score_model`.

  Without the likelihoods, for which every prompt is read once more.
  """
  model = _with_settings(model, data, settings)
  source, task = open_task(model.lm, model.inputs, data.test, prompt_length, model.method)
  assert isinstance(task, QuestionTask)
  return _score_questions(model, source, task, settings)


def score_answers(
  task: QuestionTask, examples: Sequence[Example], answers: Sequence[str]
) -> Scores:
  """Exact match and F1 in percent of answers to examples, with their 95% intervals."""
  scores = [
    grade([answer], [task.answers(example)])
    for example, answer in zip(examples, answers, strict=True)
  ]
  metrics = means_with_intervals(scores) | {"examples": len(examples)}
  return Scores(metrics, predictions=prediction_rows(task, examples, answers, scores))


def has_tasks(source: Source) -> bool:
  """Whether a source is scored by data set and template: its rows name them, or have choices."""
  return bool(source.datasets or source[0].get("choices"))


def check_test_questions(
  lm: Any, data: DataSettings, settings: EvaluateSettings, prompt_length: int
) -> None:
  """UserError if a question of `data.test` that will be answered does not fit the context."""
  source, task = open_task(lm, data, data.test, prompt_length)
  if isinstance(task, QuestionTask) and not has_tasks(source):
    examples = _first_examples(source, settings)
    name, max_new_tokens = source.name, settings.max_new_tokens
    check_question_lengths(lm, task, examples, name, max_new_tokens, prompt_length)


def _losses(found: TeacherForced, indices: Sequence[int]) -> dict[int, dict[str, float]]:
  """{index of a question: its `loss` and `targets`}; indices: of the rows, but for empty ones."""
  rows = zip(indices, found.row_losses.tolist(), found.row_targets.tolist(), strict=False)
  return {
    index: {"loss": loss / targets, "targets": targets}
    for index, loss, targets in rows
    if targets and math.isfinite(loss)
  }


def _reading_cost(model: TunedModel, lengths: tuple[int, int]) -> dict[str, float]:
  """`gflop` of a text of these lengths, the LM's and the encoder's; {} where it has no count."""
  try:
    return {"gflop": reading_flops(model, *lengths) / 1e9}
  except ValueError:  # a loop whose iterations depend on values
    return {}


def _score_questions(
  model: TunedModel, source: Source, task: QuestionTask, settings: EvaluateSettings
) -> Scores:
  examples = _first_examples(source, settings)
  return score_answers(task, examples, model.answer(examples))


def _first_examples(source: Source, settings: EvaluateSettings) -> list[Example]:
  return [source[index] for index in range(min(len(source), settings.max_examples))]


def _with_settings(model: TunedModel, data: DataSettings, settings: EvaluateSettings) -> TunedModel:
  inputs = dataclasses.replace(data, datasets=data.datasets or model.inputs.datasets)
  return dataclasses.replace(model, inputs=inputs, generation=settings)
