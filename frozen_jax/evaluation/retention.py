"""What training leaves unchanged: the LM's perplexity on general text, and skills learnt before.

The frozen methods change neither, which is verified here; full fine-tuning does (docs/paper.md, 0
and 5).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import HostBatch, Method
from frozen_jax.data.batches import scoring_batches
from frozen_jax.data.settings import DataSettings
from frozen_jax.data.sources import open_source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation import extensibility, forgetting
from frozen_jax.evaluation.scores import score_source
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.inputs import encoder_inputs, open_task
from frozen_jax.models.tuned_model import TunedModel


def check_retention(
  lm: FrozenLM,
  data: DataSettings,
  settings: EvaluateSettings,
  stages: Mapping[str, DataSettings],
) -> None:
  """UserError if the general text cannot be opened, or a skill's answers cannot be compared.

  data: the run's. stages: the data of each stage that runs, in the order in which they run.
  """
  if settings.general_text:
    _general_text_batches(lm, data, settings)
  earlier = list(stages)[:-1]
  for name in settings.skills:
    if name not in earlier:
      raise UserError(
        f"evaluate.skills names {name!r}, after which no stage runs; give some of"
        f" {', '.join(earlier) or 'config.stage_order, which needs two stages'}"
      )
    _, task = open_task(lm, stages[name], stages[name].test, prompt_length=0)
    if not isinstance(task, QuestionTask):
      raise UserError(f"the test data of skill {name} are plain text; give it questions")


def general_text_before(
  lm: FrozenLM, data: DataSettings, settings: EvaluateSettings
) -> dict[str, Any] | None:
  """Scores of the unmodified LM on `settings.general_text`; None if that names no text."""
  if not settings.general_text:
    return None
  return forgetting.general_text(lm, _general_text_batches(lm, data, settings))


def forgetting_by_model(
  models: Mapping[str, TunedModel],
  data: DataSettings,
  settings: EvaluateSettings,
  before: Mapping[str, Any] | None,
) -> dict[str, dict[str, Any]]:
  """`evaluation.forgetting` of each model; empty without `before`.

  data, settings, before: those of `general_text_before` and what it returned.
  """
  if before is None:
    return {}
  return {
    name: forgetting.forgetting(
      model, _general_text_batches(model.lm, data, settings, model.method), before
    )
    for name, model in models.items()
  }


def skill_outputs(
  model: TunedModel,
  data: DataSettings,
  settings: EvaluateSettings,
  prompt_length: int,
  later: TunedModel | None = None,
) -> extensibility.Outputs:
  """What a skill gives on its `data.test`, as trained, or after a `later` one was trained as well.

  A later skill that trains the LM's weights replaces those that served this one. Arguments as
  `evaluation.scores.score_model`; the test data are questions.
  """
  if later is not None and "lm" in later.trained:
    model = model.with_trained({**model.trained, "lm": later.trained["lm"]})
  source, task = open_task(model.lm, data, data.test, prompt_length, model.method)
  assert isinstance(task, QuestionTask)  # `check_retention` refuses anything else
  count = min(len(source), settings.max_examples)
  return extensibility.outputs(
    dataclasses.replace(model, generation=settings),
    [task.prompt(source[index]) for index in range(count)],
    score_source(model, data, data.test, settings, prompt_length).metrics,
  )


def _general_text_batches(
  lm: FrozenLM, data: DataSettings, settings: EvaluateSettings, method: Method | None = None
) -> Sequence[HostBatch]:
  source = open_source(settings.general_text, data.fields)
  encoder = None if method is None else encoder_inputs(lm, method, data)
  task = forgetting.TextHalves(lm.tokenizer, data.lengths[-1], encoder, lm.config.vocab_size)
  return list(scoring_batches(source, task, settings.batch_size, settings.max_examples))
