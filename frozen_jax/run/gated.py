"""Recursion only when needed (METHODS 5): the gate of a run, fitted and shown.

On validation questions `recursion.compute_budget` picks how sure pass one has to be; on test
questions accuracy is set against mean compute, beside a random gate and an oracle.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import TwoPass
from frozen_jax.data.examples import Example
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation import gate
from frozen_jax.evaluation.answers import grade
from frozen_jax.methods import METHODS
from frozen_jax.run import options as experiment
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.scores import Scores, score_answers
from frozen_jax.run.stages import System, question_task
from frozen_jax.run.two_pass import first_pass, where_needed
from frozen_jax.sharding.hosts import is_first_host

PLOT = "gate.png"  # within a workdir

Report = dict[str, Any]
Asked = Callable[[str, int], Sequence[Example]]


def budget_of(options: experiment.Options) -> float:
  """The mean compute in passes that the run's gate may spend; 0 for no gate."""
  return options.get("recursion", {}).get("compute_budget", 0.0)


def check(options: experiment.Options, lm: FrozenLM) -> None:
  """UserError for a budget or a confidence that cannot be, and for a method of one pass."""
  if not budget_of(options):
    return
  gate.check_budget(budget_of(options))
  measure, last = options["recursion"]["confidence"], options["order"][-1]
  if measure not in gate.MEASURES:
    raise UserError(f"recursion.confidence is {measure!r}; there are: {', '.join(gate.MEASURES)}")
  if measure == "agreement" and "candidates" not in options:
    raise UserError("recursion.confidence=agreement needs samples; give probability or margin")
  stage = experiment.stage_options(options, last)
  if not isinstance(METHODS[stage["method"]](lm, stage), TwoPass):
    raise UserError(
      f"stage {last} has one pass, so there is none to leave out; drop compute_budget"
    )


def added(
  system: System,
  lm: FrozenLM,
  options: experiment.Options,
  asked: Asked,
  scores: Mapping[str, Scores],
  folder: pathlib.Path,
) -> tuple[System, dict[str, Scores], Report]:
  """Fits the gate of a run and shows what it does; draws WORKDIR/gate.png.

  asked: the questions of a split as pass one reads them, at most so many. scores: the rows of the
  table, the system's own last.

  Returns (the system with its gate, the table with the gated system's row before the last, a report
  for results.json).
  """
  validation = asked("validation", system.options["train"]["validate_examples"])
  test = asked("test", system.options["evaluate"]["max_examples"])
  task = question_task(system.options, lm, system.method)
  measure = options["recursion"]["confidence"]
  first = first_pass(system, lm, validation, measure)
  right = _exact(task, validation, first.texts) > 0
  found, fitted = gate.fit(first.sure, right, budget_of(options), measure)
  gated = dataclasses.replace(system, options=system.options | {"gate": dataclasses.asdict(found)})
  *others, last = scores
  first = first_pass(gated, lm, test, measure)
  second = [row["prediction"] for row in scores[last].predictions]
  by_pass = _exact(task, test, first.texts), _exact(task, test, second)
  at, curves = gate.point(found.takes(first.sure), *by_pass), gate.curve(first.sure, *by_pass)
  if is_first_host():
    gate.draw(folder / PLOT, curves, at)
  report = {
    **gated.options["gate"],
    "validation": fitted,
    "test": _plain(at),
    "area": {name: line.area for name, line in curves._asdict().items()},
    "curve": {name: [c.tolist() for c in line] for name, line in curves._asdict().items()},
  }
  replies = where_needed(gated, lm, first)
  own = score_answers(task, list(test), [reply.text for reply in replies])
  own.figures["passes"] = float(np.mean([reply.passes for reply in replies]))
  rows = {name: scores[name] for name in others} | {f"gated {budget_of(options):g}": own}
  return gated, rows | {last: scores[last]}, report


def lines(report: Mapping[str, Any]) -> list[str]:
  """The report as text; none without one."""
  if not report:
    return []
  test, area = report["test"], report["area"]
  kept = "" if test["kept"] is None else f", {test['kept']:.0f}% of the second pass's gain"
  return [
    f"gate: {test['accuracy']:.1f}% exact match at {test['compute']:.2f} passes a row{kept}; area"
    f" {area['gate']:.1f} (random {area['random']:.1f}, oracle {area['oracle']:.1f})"
  ]


def _exact(task: QuestionTask, rows: Sequence[Example], texts: Sequence[str]) -> np.ndarray:
  """Exact match of each row in percent, float64 [N]."""
  pairs = zip(texts, rows, strict=True)
  return np.array([grade([text], [task.answers(row)])["exact_match"] for text, row in pairs])


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
  """For JSON, which has no NaN."""
  return {name: None if math.isnan(value) else value for name, value in figures.items()}
