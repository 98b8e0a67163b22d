"""The gains that a config states, over its runs: paired by question and by seed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from frozen_jax.evaluation.gains import Gain, question_gains
from frozen_jax.evaluation.intervals import interval_over_runs
from frozen_jax.run.results.compared_runs import (
  DIFFERENCE,
  Answered,
  Estimate,
  QuestionKey,
  Run,
  answered_questions,
)
from frozen_jax.run.results.gains import kinds_of


@dataclasses.dataclass(frozen=True)
class GroupGain:
  """How much one row of a group gains over another: {EXACT_MATCH, LOSS?: its estimate}.

  The interval of one run is over questions, as in its record, that of several over questions and
  seeds (`evaluation.intervals.interval_over_runs`). kind: of the questions; "": all of them.
  """

  gain: Gain
  kind: str
  estimates: Mapping[str, Estimate]


def group_gains(runs: Sequence[Run], title: str) -> tuple[list[GroupGain], list[str]]:
  """The gains of runs that differ in nothing but their seed, and why some lack.

  title: of the group, for what is said.
  """
  if not (stated := runs[0].record.get("gains", [])):
    return [], []
  if len(runs) == 1:
    return _of_one(runs[0]), []
  each: list[Mapping[QuestionKey, Answered]] = []
  for run in runs:
    found = answered_questions(run)
    if isinstance(found, str):
      return [], [f"no gains over the runs of {title}: {found}"]
    if each and found.keys() != each[0].keys():
      return [], [f"no gains over the runs of {title}: they answered other questions"]
    each.append(found)
  gains, notes = [], []
  for one in stated:
    gain = Gain(one["what"], one["row"], one["against"])
    joined = _joined(gain, each)
    gains += joined
    if not joined:
      notes.append(f"no gain of {gain.row} over {gain.against}: not every run of {title} has both")
  return gains, notes


def _of_one(run: Run) -> list[GroupGain]:
  """As the record of a run has them."""
  found = []
  for one in run.record["gains"]:
    gain = Gain(one["what"], one["row"], one["against"])
    for kind, figures in {"": one, **one.get("by_kind", {})}.items():
      estimates = {
        name: Estimate(
          1, own[DIFFERENCE], None, own[f"{DIFFERENCE}_low"], own[f"{DIFFERENCE}_high"]
        )
        for name, own in figures.items()
        if isinstance(own, Mapping) and DIFFERENCE in own
      }
      found.append(GroupGain(gain, kind, estimates))
  return found


def _joined(gain: Gain, each: Sequence[Mapping[QuestionKey, Answered]]) -> list[GroupGain]:
  """A gain over runs with the same questions, in all and by kind; [] where a row lacks."""
  questions = list(each[0])
  kind_of = {question: each[0][question].row.get("kind") for question in questions}
  found = []
  for kind in ("", *kinds_of([one.row for one in each[0].values()])):
    asked = [one for one in questions if kind in ("", kind_of[one])]
    values: dict[str, list[np.ndarray]] = {}
    for answers in each:
      row, against = ([answers[one].of(name) for one in asked] for name in gain[1:])
      both = [(a, b) for a, b in zip(row, against, strict=True) if a is not None and b is not None]
      if len(both) < len(asked):
        return []
      for name, own in question_gains([a for a, _ in both], [b for _, b in both]).items():
        values.setdefault(name, []).append(own)
    estimates = {
      name: _estimate(np.stack(own))
      for name, own in values.items()
      if len(own) == len(each) and len({one.size for one in own}) == 1
    }
    found.append(GroupGain(gain, kind, estimates))
  return found


def _estimate(values: np.ndarray) -> Estimate:
  """Of values [runs, questions]."""
  return Estimate(len(values), float(values.mean()), None, *interval_over_runs(values))
