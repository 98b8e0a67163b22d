"""The table of a run or an evaluation: baselines, stages, and the rows of the pipelines."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from frozen_jax.core.object_store import AnyPath
from frozen_jax.data.sources import open_source
from frozen_jax.evaluation.scores import Scores, score_model
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.inputs import first_questions
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.cascade import fitting
from frozen_jax.pipelines.cascade.inference import inference_of
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.pipeline import Pipeline, ScoredModel, with_same_test_data
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.text.templates import added_by_chat

_LOG = logging.getLogger(__name__)
_SAID = ("exact_match", "score", "loss")  # of a row as soon as it is evaluated


def open_pipelines(run: RunSettings, lm: FrozenLM, folder: AnyPath) -> list[Pipeline]:
  """The pipelines that the run's config asks for."""
  return [kind(run, lm, folder) for name, kind in PIPELINES.items() if name in run.pipelines]


def score_baselines(lm: FrozenLM, settings: StageSettings) -> dict[str, Scores]:
  """Scores the LM without training, which nothing that is trained changes; {row: its scores}."""
  return {name: _timed(name, *scored) for name, scored in _baselines(lm, settings).items()}


def score_models(
  run: RunSettings,
  lm: FrozenLM,
  models: Mapping[str, ScoredModel],
  pipelines: Sequence[Pipeline],
  baselines: Mapping[str, Scores] = MappingProxyType({}),
) -> tuple[dict[str, Scores], dict[str, ScoredModel]]:
  """Scores the LM without training, and every model that is comparable with the last one.

  baselines: what `score_baselines` found for the last of them; else they are scored here.

  Returns ({row of the table: its scores}, the last model's last, and the model of every row).
  """
  names = list(models) if pipelines else with_same_test_data(models)
  for pipeline in pipelines:
    compared = pipeline.compared_stages(models)
    names = [name for name in names if name in compared]
  scored = dict(models)
  rows: list[str] = []
  if names:
    untrained = _baselines(lm, models[names[-1]][0])
    scored = untrained | scored
    rows = [*untrained, *names]
  scores = {name: baselines.get(name) or _timed(name, *scored[name]) for name in rows}
  for pipeline in pipelines:
    scores = pipeline.scores(scores, scored)
  return scores, scored


def add_cascade(
  run: RunSettings,
  models: Mapping[str, ScoredModel],
  scores: Mapping[str, Scores],
  pipelines: Sequence[Pipeline],
  folder: AnyPath,
  inference: Any = None,
) -> tuple[TunedModel, dict[str, Scores], dict[str, Any]]:
  """The last model as it answers in use, with a gate where the config has a budget for one.

  inference: how the model answered before, where it was loaded.

  Returns (the model, the rows with the gated model's before the last, what the record holds of it).
  """
  *_, last = scores
  settings, model = models[last]
  model = dataclasses.replace(model, inference=inference or inference_of(run, settings.seed))
  if not run.cascade.compute_budget:
    return model, dict(scores), {}
  validation = _first_pass_questions(
    settings, pipelines, "validation", settings.train.validate_examples
  )
  test = _first_pass_questions(settings, pipelines, "test", settings.evaluate.max_examples)
  model, rows, report = fitting.fit_cascade(model, run.cascade, validation, test, scores, folder)
  return model, rows, {"gate": report}


def pipeline_lines(pipelines: Sequence[Pipeline], record: Mapping[str, Any]) -> list[str]:
  """What a record says of the pipelines and the gate, as text."""
  lines = [line for pipeline in pipelines for line in pipeline.lines(record)]
  return lines + fitting.report_lines(record.get("gate", {}))


def _baselines(lm: FrozenLM, settings: StageSettings) -> dict[str, ScoredModel]:
  """The LM without training; where it has a chat form and is asked questions, in that form too.

  The chat form makes every prompt longer by as much, for which `data.lengths` need leave no room.
  """
  like = settings.tuned_model(lm)
  plain = lm.zero_shot(inputs=like.inputs, generation=like.generation)
  baselines = {"zero_shot": (settings, plain)}
  chat = getattr(lm.tokenizer, "chat_template", None)
  if chat and settings.data.template == "plain" and _asks_questions(settings):
    more = added_by_chat(lm.tokenizer)
    lengths = tuple(length + more for length in settings.data.lengths)
    inputs = dataclasses.replace(like.inputs, template="chat", lengths=lengths)
    model = lm.zero_shot(inputs=inputs, generation=like.generation)
    baselines["zero_shot_chat"] = (settings.with_data(template="chat", lengths=lengths), model)
  return baselines


def _asks_questions(settings: StageSettings) -> bool:
  data = settings.data
  source = open_source(data.test, data.fields, templates=data.templates)
  return "question" in source[0]


def _first_pass_questions(
  settings: StageSettings, pipelines: Sequence[Pipeline], split: str, count: int
) -> list[Any]:
  for pipeline in pipelines:
    found = pipeline.first_pass_questions(split, count)
    if found is not None:
      return found
  return first_questions(settings.data, getattr(settings.data, split), count)


def _timed(name: str, settings: StageSettings, model: TunedModel) -> Scores:
  begun = time.monotonic()
  scores = score_model(model, settings.data, settings.evaluate, settings.prompt.length)
  seconds, found = time.monotonic() - begun, scores.metrics
  figures = [f"{one.replace('_', ' ')} {found[one]:.3f}" for one in _SAID if one in found]
  _LOG.info("evaluated %s in %.0f s: %s", name, seconds, ", ".join(figures))
  return scores
