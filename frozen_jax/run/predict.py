"""Prediction: a finished run answers questions."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from frozen_jax.core import interruption
from frozen_jax.core.files import check_writable, write_lines
from frozen_jax.core.json_row import Row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.streams import is_unicode
from frozen_jax.core.user_path import user_path
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_questions
from frozen_jax.evaluation.predictions import check_question_lengths, prediction_rows
from frozen_jax.models.outline import outline_model
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.cascade.inference import replies
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.pipelines.pipeline import Pipeline
from frozen_jax.run import workdir
from frozen_jax.run.early_checks import check_questions
from frozen_jax.run.evaluate import open_run
from frozen_jax.run.interrupt import check, stoppable
from frozen_jax.run.scoring import open_pipelines
from frozen_jax.run.settings import compiled_as_asked, resolve_run
from frozen_jax.sharding.hosts import is_first_host


@compiled_as_asked
def predict(config: Any, folder: str | AnyPath) -> list[Row]:
  """Answers the questions of `predict.input` (a file, or - for standard input).

  A question is a line of plain text, or a JSON object as in a data file. The answers are printed
  as JSON lines and written to predictions.jsonl; returns them. Raises Interrupted when SIGTERM or
  SIGINT came: until all are answered nothing is printed or written, and no line in part.
  """
  with stoppable():
    return _predict(config, user_path(folder))


def _predict(config: Any, folder: AnyPath) -> list[Row]:
  run = resolve_run(config)
  read_stored(folder)  # what is wrong with either is said before the model is loaded
  check_writable(folder)
  asked = given_questions(run, folder)
  rows = open_predictor(config, folder)(*asked)
  check()
  if is_first_host():
    write_lines(folder / workdir.PREDICTIONS, rows)
    for row in rows:
      with interruption.deferred():
        print(json.dumps(row, ensure_ascii=not is_unicode(sys.stdout)), flush=True)
  return rows


def given_questions(run: RunSettings, folder: AnyPath) -> tuple[list[Example], str]:
  """The questions of `predict.input`, checked as far as that takes no weight, and where from."""
  lm = outline_model(run.model)  # whatever is wrong with it is said before anyone types a question
  spec = run.values["predict"]["input"]
  where = "standard input" if spec == "-" else spec
  given = open_questions(spec, run.data.fields, run.data.templates)
  examples = [given[index] for index in range(len(given))]
  check_questions(run, folder, lm, examples, where)
  return examples, where


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
  """A finished run as it answers questions; its pipelines find what it reads."""

  run: RunSettings
  model: TunedModel
  pipelines: Sequence[Pipeline]

  def __call__(self, examples: Sequence[Example], where: str) -> list[Row]:
    """The rows of predictions.jsonl for questions that come from `where`; UserError as `inputs`."""
    found = replies(self.model, self.inputs(examples, where))
    read, texts = [one.read for one in found], [one.text for one in found]
    return prediction_rows(self.model.question_task, read, texts)

  def inputs(self, examples: Sequence[Example], where: str) -> Sequence[Example]:
    """The questions as the model reads them.

    Raises UserError naming the first one that is too long.
    """
    for pipeline in self.pipelines:
      examples = pipeline.inputs(examples)
    model, task = self.model, self.model.question_task
    length, max_new_tokens = self.run.stages[-1].prompt.length, model.generation.max_new_tokens
    check_question_lengths(model.lm, task, examples, where, max_new_tokens, length)
    return examples


def open_predictor(config: Any, folder: AnyPath) -> Predictor:
  """The finished run of a workdir; UserError where there is none, or it is another LM's."""
  run, model = open_run(config, folder)
  return Predictor(run, model, open_pipelines(run, model.lm, folder))
