"""Records grouped by config: means over seeds, and differences.

A standard error is over the runs of a group: the standard deviation (n - 1 in the variance) over
the square root of n. An interval is over test questions (`evaluation.intervals`).
`run.comparison_formats` writes it.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.seed_folders import seed_folder, seeds_in
from frozen_jax.core.user_path import user_path
from frozen_jax.evaluation.intervals import paired_difference
from frozen_jax.run.results.compared_gains import GroupGain, group_gains
from frozen_jax.run.results.compared_runs import (
  DIFFERENCE,
  Estimate,
  QuestionKey,
  Run,
  last_row_matches,
  read_run,
)
from frozen_jax.run.results.records import rows_with_training
from frozen_jax.run.results.report import COLUMNS
from frozen_jax.run.workdir import CONFIG, EVALUATIONS, RESULTS

# Keys of a config in which the runs of a group may differ.
_NOT_COMPARED = ("seed", "seeds", "gains", "evaluation", "mesh", "predict", "export")


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of a group on one source of test data: {row: {metric: estimate}}.

  by_kind: whether they are of the exact match of each kind of question: {row: {kind: estimate}}
  """

  test: str
  held_out: bool
  rows: Mapping[str, Mapping[str, Estimate]]
  by_kind: bool = False


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much higher the exact match of `row` is than that of `against`, in percentage points.

  kind: of the questions on which it is; "": all of them
  """

  group: str
  row: str
  against_group: str
  against: str
  estimate: Estimate
  kind: str = ""


@dataclasses.dataclass(frozen=True)
class RunGroup:
  """Runs that differ in nothing but their seed: their tables and the differences between rows.

  gains: those that the config states; notes: why some of them lack.
  """

  title: str
  runs: tuple[Run, ...]
  tables: tuple[Table, ...]
  differences: tuple[Difference, ...]
  gains: tuple[GroupGain, ...] = ()
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Groups, the differences between the last rows of each two, units of metrics, and remarks."""

  groups: tuple[RunGroup, ...]
  differences: tuple[Difference, ...]
  units: Mapping[str, str]
  notes: tuple[str, ...]


def compare_runs(paths: Sequence[str | AnyPath]) -> Comparison:
  """The comparison of workdirs, folders of evaluations and results.json files.

  A workdir of several seeds stands for those of them all.

  Raises UserError for a record that is missing, damaged, of another format or given twice, for
  damaged predictions, and where the groups have no row or no metric in common.
  """
  runs = _unique([read_run(one) for path in paths for one in _of_each_seed(user_path(path))])
  groups = tuple(_group(members) for members in _by_config(runs))
  _check_comparable(groups)
  differences, notes = _between_groups(groups) if len(groups) > 1 else ([], [])
  units = {name: unit for run in runs for name, unit in run.record.get("units", {}).items()}
  notes = [note for group in groups for note in _group_notes(group)] + notes
  return Comparison(groups, tuple(differences), units, tuple(notes))


def _of_each_seed(path: AnyPath) -> list[AnyPath]:
  """Those of the seeds for a workdir, or an evaluation in it, that holds no run of its own; else
  the path alone."""
  if (path / CONFIG).exists() or (path / RESULTS).exists():
    return [path]
  is_evaluation = path.parent.name == EVALUATIONS
  workdir = path.parent.parent if is_evaluation else path
  folders = [seed_folder(workdir, seed) for seed in seeds_in(workdir)] or [workdir]
  return [one / EVALUATIONS / path.name if is_evaluation else one for one in folders]


def _unique(runs: Sequence[Run]) -> list[Run]:
  """The runs with names that differ; UserError for a run that is given twice."""
  files = [run.folder or run.path.resolve() for run in runs]
  names = [run.name for run in runs]
  for file, run in zip(files, runs, strict=True):
    if files.count(file) > 1:
      raise UserError(f"{run.path} is given twice; give each run once")
  return [
    dataclasses.replace(run, name=str(run.path)) if names.count(run.name) > 1 else run
    for run in runs
  ]


def _by_config(runs: Sequence[Run]) -> list[list[Run]]:
  """The runs of each group; one that repeats a seed begins another group of the same config."""
  groups: dict[tuple[str, int], list[Run]] = {}
  for run in runs:
    key = _key(run)
    for repetition in itertools.count():
      group = groups.setdefault((key, repetition), [])
      if run.record["seed"] not in [other.record["seed"] for other in group]:
        group.append(run)
        break
  return list(groups.values())


def _key(run: Run) -> str:
  """What the runs of a group have in common, as text.

  Next to the config, which is an evaluation's own where it has one, the evaluation's name counts.
  """
  config = run.config
  if config is not None:
    config = {name: value for name, value in config.items() if name not in _NOT_COMPARED}
  record = run.record
  scored = [record["method"], record["model"], record.get("test"), record["table"]["rows"]]
  return json.dumps([config, run.evaluation, scored], sort_keys=True)


def _group(runs: Sequence[Run]) -> RunGroup:
  title = ", ".join(run.name for run in runs)
  test = runs[0].record.get("test", "")
  tables = [Table(test, False, _rows([rows_with_training(run.record) for run in runs]))]
  for source in dict.fromkeys(name for run in runs for name in run.record.get("held_out", {})):
    each = [run.record.get("held_out", {}).get(source, {}) for run in runs]
    tables.append(Table(source, True, _rows(each)))
  kinds = list(dict.fromkeys(kind for run in runs for kind in run.record.get("by_kind", {})))
  if kinds:
    tables.append(Table(test, False, _kind_rows(runs, kinds, list(tables[0].rows)), by_kind=True))
  differences = [one for kind in ("", *kinds) for one in _differences(runs, title, kind)]
  gains, gain_notes = group_gains(runs, title)
  return RunGroup(
    title, tuple(runs), tuple(tables), tuple(differences), tuple(gains), tuple(gain_notes)
  )


def _of_kind(run: Run, kind: str) -> Mapping[str, Any]:
  """What a record has of a kind of question: its `rows` and `paired`."""
  return run.record.get("by_kind", {}).get(kind, {"rows": {}, "paired": {}})


def _kind_rows(
  runs: Sequence[Run], kinds: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
  """The exact match of each row by kind."""
  rows: dict[str, dict[str, Estimate]] = {name: {} for name in names}
  for kind in kinds:
    tables = [_of_kind(run, kind)["rows"] for run in runs]
    for name, own in rows.items():
      found = _estimate([table[name] for table in tables if name in table], "exact_match")
      if found is not None:
        own[kind] = found
  return {name: own for name, own in rows.items() if own}


def _differences(runs: Sequence[Run], title: str, kind: str) -> list[Difference]:
  """The last row against each other one, within each run; kind: of these questions alone."""
  paired = [_of_kind(run, kind)["paired"] if kind else run.record.get("paired", {}) for run in runs]
  differences = []
  for other in dict.fromkeys(name for rows in paired for name in rows):
    found = _estimate([rows[other] for rows in paired if other in rows], DIFFERENCE)
    if found is not None:
      differences.append(Difference(title, runs[0].last_row, title, other, found, kind))
  return differences


def _rows(
  tables: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, Estimate]]:
  """One table of the tables of several runs, its rows in the order of the first."""
  rows: dict[str, dict[str, Estimate]] = {}
  for name in dict.fromkeys(name for table in tables for name in table):
    figures = [table[name] for table in tables if name in table]
    estimates = {column: _estimate(figures, column) for column in COLUMNS}
    rows[name] = {column: found for column, found in estimates.items() if found is not None}
  return rows


def _estimate(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
  """Of the runs that have the metric as a number; NaN of those that have none, None without any."""
  rows = [row for row in rows if name in row]
  if not rows:
    return None
  rows = [row for row in rows if math.isfinite(row[name])] or rows[:1]
  values = np.array([row[name] for row in rows], np.float64)
  if len(values) > 1:
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(len(values), float(values.mean()), error)
  low, high = (rows[0].get(f"{name}_{end}", math.nan) for end in ("low", "high"))
  bounds = (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)
  return Estimate(1, float(values[0]), None, *bounds)


def _check_comparable(groups: Sequence[RunGroup]) -> None:
  """UserError unless all groups have a row and a metric in common."""
  tables = [group.tables[0].rows for group in groups]
  metrics = [{name for row in rows.values() for name in row} for rows in tables]
  for what, names in (("row", [set(rows) for rows in tables]), ("metric", metrics)):
    if not set.intersection(*names):
      each = "; ".join(
        f"{group.title}: {', '.join(sorted(own)) or 'none'}"
        for group, own in zip(groups, names, strict=True)
      )
      raise UserError(f"the runs have no {what} in common ({each}); compare them apart")


def _group_notes(group: RunGroup) -> list[str]:
  """What makes the mean of a group or one of its runs doubtful."""
  notes = [
    f"{run.name}: the frozen weights changed during the run"
    for run in group.runs
    if run.record.get("frozen_unchanged") is False
  ]
  notes += [
    f"{run.name}: {name} of {row} is {figures[name]}, and in no mean"
    for run in group.runs
    for row, figures in rows_with_training(run.record).items()
    for name in COLUMNS
    if not math.isfinite(figures.get(name, 0))
  ]
  notes += group.notes
  if len(group.runs) == 1:
    return notes
  if group.runs[0].config is None:
    notes.append(
      f"{group.title}: without {CONFIG} the runs are taken for one config because method, model,"
      " test data and rows are the same"
    )
  if len({run.record.get("frozen_fingerprint") for run in group.runs}) > 1:
    notes.append(f"{group.title}: the frozen weights of the runs are not the same")
  if len({run.record["metrics"].get("examples") for run in group.runs}) > 1:
    notes.append(f"{group.title}: the runs were scored on different numbers of examples")
  return notes


def _between_groups(groups: Sequence[RunGroup]) -> tuple[list[Difference], list[str]]:
  """Differences in exact match between the last rows of each two groups, and why some lack."""
  matches, notes = {}, []
  for group in groups:
    found = _mean_matches(group)
    if isinstance(found, str):
      notes.append(f"no difference between {group.title} and the others: {found}")
    else:
      matches[group.title] = group, found
  differences = []
  for (against, first), (group, second) in itertools.combinations(matches.values(), 2):
    if first.keys() != second.keys():
      notes.append(
        f"no difference between {group.title} and {against.title}: they answered other questions"
      )
      continue
    paired = paired_difference(
      np.array(list(first.values())), np.array([second[question] for question in first])
    )
    sizes = {len(group.runs), len(against.runs)}
    low, high = paired["difference_low"], paired["difference_high"]
    estimate = Estimate(
      sizes.pop() if len(sizes) == 1 else None, paired[DIFFERENCE], None, low, high
    )
    rows = group.runs[0].last_row, against.runs[0].last_row
    differences.append(Difference(group.title, rows[0], against.title, rows[1], estimate))
  return differences, notes


def _mean_matches(group: RunGroup) -> dict[QuestionKey, float] | str:
  """Exact match of the last row by question, the mean over the runs; or why there is none."""
  each: list[dict[QuestionKey, float]] = []
  for run in group.runs:
    matches = last_row_matches(run)
    if isinstance(matches, str):
      return matches
    if each and matches.keys() != each[0].keys():
      return "its runs answered other questions"
    each.append(matches)
  return {question: float(np.mean([own[question] for own in each])) for question in each[0]}
