"""The gate of a run, fitted on validation questions and shown on test questions.

On validation questions `cascade.compute_budget` picks how sure pass one has to be; on test
questions accuracy is set against mean compute, next to a random gate and an oracle.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import without_nan
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.types import TwoPass
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation import gate
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.plots import draw_gate
from frozen_jax.evaluation.scores import Scores, has_tasks, score_answers
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.cascade.inference import TwoPassInference
from frozen_jax.pipelines.cascade.settings import CascadeSettings
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.sharding.hosts import is_first_host

GATE_PLOT = "gate.png"  # within a workdir

AskFirstPass = Callable[[str, int], Sequence[Example]]


def check_cascade(run: RunSettings, lm: Any) -> None:
  """UserError for a budget where there is no second pass to leave out, or nothing to read
  confidence off."""
  if not run.cascade.compute_budget:
    return
  has_samples = any(PIPELINES[name].has_samples for name in run.pipelines)
  if run.cascade.confidence == "agreement" and not has_samples:
    raise UserError("cascade.confidence=agreement needs samples; give probability or margin")
  last = run.running[-1]
  method = last.tuned_model(lm).method
  if not isinstance(method, TwoPass) or method.pass_costs.all <= 1:
    raise UserError(
      f"stage {last.name} has one pass, so there is none to leave out; drop compute_budget"
    )
  data = last.data
  if not run.pipelines and has_tasks(open_source(data.test, data.fields, templates=data.templates)):
    raise UserError(
      f"data.test={data.test} is scored by data set, and a gate by question; drop"
      " cascade.compute_budget, or give data.test questions that name no data set"
    )


def fit_cascade(
  model: TunedModel,
  settings: CascadeSettings,
  validation: Sequence[Example],
  test: Sequence[Example],
  scores: Mapping[str, Scores],
  folder: AnyPath,
) -> tuple[TunedModel, dict[str, Scores], dict[str, Any]]:
  """Fits the gate of a model and shows what it does; draws FOLDER/gate.png.

  Args:
    validation, test: questions as pass one reads them.
    scores: the rows of the table, the model's own last.

  Returns (the model with its gate, the table with the gated model's row before the last, a report
  for results.json).
  """
  task, inference = model.question_task, model.inference or TwoPassInference()
  assert isinstance(inference, TwoPassInference) and isinstance(model.method, TwoPass)
  costs = model.method.pass_costs
  first = inference.first_pass(model, validation, settings.confidence)
  right = _exact_match(task, validation, first.texts) > 0
  fitted_gate, fitted = gate.fit_gate(
    first.confidences, right, settings.compute_budget, settings.confidence, costs.later
  )
  inference = dataclasses.replace(inference, gate=fitted_gate)
  gated = dataclasses.replace(model, inference=inference)
  *others, last = scores
  first = inference.first_pass(gated, test, settings.confidence)
  second = [row["prediction"] for row in scores[last].predictions]
  by_pass = _exact_match(task, test, first.texts), _exact_match(task, test, second)
  needed = fitted_gate.needs_second_pass(first.confidences)
  chosen = gate.operating_point(needed, *by_pass, costs.later)
  curves = gate.deferral_curves(first.confidences, *by_pass, costs.later)
  if is_first_host():
    draw_gate(folder / GATE_PLOT, curves, chosen, settings.compute_budget)
  report = {
    **dataclasses.asdict(fitted_gate),
    "validation": fitted,
    "test": without_nan(chosen),
    "costs": costs._asdict(),
    "area": {name: line.area for name, line in curves._asdict().items()},
    "curve": {name: [c.tolist() for c in line] for name, line in curves._asdict().items()},
  }
  found = inference.second_where_needed(gated, first)
  own = score_answers(task, list(test), [reply.text for reply in found])
  own.metrics["passes"] = float(np.mean([1 + costs.later * (one.passes - 1) for one in found]))
  rows = {name: scores[name] for name in others} | {f"gated {settings.compute_budget:g}": own}
  return gated, rows | {last: scores[last]}, report


def report_lines(report: Mapping[str, Any]) -> list[str]:
  """The report as text; none without one."""
  if not report:
    return []
  test, area = report["test"], report["area"]
  share = test["share_of_gain"]
  of_gain = "" if share is None else f", {share:.0f}% of the second pass's gain"
  return [
    f"gate: {test['accuracy']:.1f}% exact match at {test['compute']:.2f} passes a row{of_gain}"
    f" (without a gate {report['costs']['all']:.2f} passes);"
    f" area {area['gate']:.1f} (random {area['random']:.1f}, oracle {area['oracle']:.1f})"
  ]


def _exact_match(task: QuestionTask, rows: Sequence[Example], texts: Sequence[str]) -> np.ndarray:
  """Exact match of each row in percent, float64 [N]."""
  pairs = zip(texts, rows, strict=True)
  return np.array([grade([text], [task.answers(row)])["exact_match"] for text, row in pairs])
