"""The computation of `tools.compare`: records grouped by config, means over seeds, differences.

A standard error is over the runs of a group: the standard deviation (n - 1 in the variance) over
the square root of n. An interval is over test questions (`evaluation.intervals`).
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import parse_row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.reading import user_read_errors
from frozen_jax.core.text_file import numbered_lines
from frozen_jax.core.user_path import user_path
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.intervals import paired_difference
from frozen_jax.run.records import FORMAT, Record, table_rows
from frozen_jax.run.report import COLUMNS
from frozen_jax.run.workdir import CONFIG, EVALUATIONS, PREDICTIONS, RESULTS, read_workdir_json

# Keys of a config in which the runs of a group may differ.
_NOT_COMPARED = ("seed", "evaluation", "mesh", "predict", "export")

_DIFFERENCE = "difference"
_RECORD_TYPES = {
  "method": str,
  "model": str,
  "test": str,
  "seed": int,
  "units": dict,
  "table": dict,
}

QuestionKey = tuple[str, str]  # id, input


@dataclasses.dataclass(frozen=True)
class Run:
  """A record and the files next to it.

  path         as given
  folder       of its results.json; None for a file of another name, which has no neighbours
  name         of its workdir, WORKDIR/NAME for an evaluation; the path where that is not unique
  evaluation   name of the evaluation, empty for the record of a training
  config       of the workdir; None without config.json
  """

  path: AnyPath
  folder: AnyPath | None
  name: str
  evaluation: str
  config: Mapping[str, Any] | None
  record: Record

  @property
  def last_row(self) -> str:
    return self.record["table"]["metrics"]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A metric or a difference over runs.

  n               runs; None for a difference between groups of unequal size
  standard_error  over runs; None for one run and between groups
  low, high       the 95% interval over test questions; of one run as in its record, and of a
                  difference between groups, for which the runs of each are averaged by question
  """

  n: int | None
  mean: float
  standard_error: float | None = None
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of a group on one source of test data: {row: {metric: estimate}}."""

  test: str
  held_out: bool
  rows: Mapping[str, Mapping[str, Estimate]]


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much higher the exact match of `row` is than that of `against`, in percentage points."""

  group: str
  row: str
  against_group: str
  against: str
  estimate: Estimate


@dataclasses.dataclass(frozen=True)
class RunGroup:
  """Runs that differ in nothing but their seed: their tables and the differences between rows."""

  title: str
  runs: tuple[Run, ...]
  tables: tuple[Table, ...]
  differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Groups, the differences between the last rows of each two, units of metrics, and remarks."""

  groups: tuple[RunGroup, ...]
  differences: tuple[Difference, ...]
  units: Mapping[str, str]
  notes: tuple[str, ...]


def compare_runs(paths: Sequence[str | AnyPath]) -> Comparison:
  """The comparison of workdirs, folders of evaluations and results.json files.

  Raises UserError for a record that is missing, damaged, of another format or given twice, for
  damaged predictions, and where the groups have no row or no metric in common.
  """
  runs = _unique([read_run(user_path(path)) for path in paths])
  groups = tuple(_group(members) for members in _by_config(runs))
  _check_comparable(groups)
  differences, notes = _between_groups(groups) if len(groups) > 1 else ([], [])
  units = {name: unit for run in runs for name, unit in run.record.get("units", {}).items()}
  notes = [note for group in groups for note in _group_notes(group)] + notes
  return Comparison(groups, tuple(differences), units, tuple(notes))


def read_run(path: AnyPath) -> Run:
  """The run of a workdir, an evaluation's folder or a results.json file.

  Raises UserError for a file that is missing, damaged or of another format.
  """
  file = path / RESULTS if path.is_dir() else path
  record = _read_object(file)
  _check_record(file, record)
  if file.name != RESULTS:
    return Run(path, None, file.name, "", None, record)
  folder = file.parent.resolve()
  evaluation = folder.name if folder.parent.name == EVALUATIONS else ""
  workdir = folder.parents[1] if evaluation else folder
  config = next((c for c in (folder / CONFIG, workdir / CONFIG) if c.exists()), None)
  name = f"{workdir.name}/{evaluation}" if evaluation else workdir.name
  values = None if config is None else _read_object(config)
  return Run(path, folder, name, evaluation, values, record)


def last_row_matches(run: Run) -> dict[QuestionKey, float] | str:
  """Exact match of the last row in percent, by question; or, as text, why there is none."""
  if "exact_match_low" not in run.record["metrics"]:
    return f"{run.name} has no exact match of single questions"
  if run.folder is None or not (run.folder / PREDICTIONS).exists():
    return f"{run.name} has no {PREDICTIONS}"
  file = run.folder / PREDICTIONS
  written = run.record.get("predictions_sha256")
  if written is not None and written != hashlib.sha256(file.read_bytes()).hexdigest():
    return _replaced(run)
  matches: dict[QuestionKey, float] = {}
  for number, _, line in numbered_lines(file):
    row = parse_row(line, f"{file}, line {number}")
    texts = [row.get(name) for name in ("id", "input", "prediction")]
    if all(isinstance(text, str) for text in texts) and not row.get("answers"):
      return _replaced(run)
    try:
      question = row["id"], row["input"]
      score = grade([row["prediction"]], [row["answers"]])["exact_match"]
    except (AttributeError, KeyError, TypeError) as error:
      reason = f"{type(error).__name__}: {error}"
      raise UserError(f"{file}, line {number} is damaged ({reason}); score the run again") from None
    if question in matches:
      return f"{run.name} has the question with id {row['id']} twice"
    matches[question] = score
  if matches and len(matches) != run.record["metrics"].get("examples", len(matches)):
    return _replaced(run)
  return matches or f"{run.name} has no predictions"


def _replaced(run: Run) -> str:
  """What is said of predictions that are not those that the record was made of."""
  return (
    f"{PREDICTIONS} of {run.name} no longer holds what was scored, but the answers of a later"
    " --mode=predict; score the run again with --mode=evaluate and compare that folder"
  )


def _read_object(path: AnyPath) -> dict[str, Any]:
  with user_read_errors(path):
    value = read_workdir_json(path)
  if not isinstance(value, dict):
    raise UserError(f"{path} is damaged (no JSON object); restore it or train again")
  return value


def _check_record(path: AnyPath, record: Record) -> None:
  """UserError for a record of another format, or without what a comparison reads."""
  if not {"format", "metrics", "table"} & record.keys():
    raise UserError(
      f"{path} is no record of a run; give a workdir, an evaluation's folder or a {RESULTS}"
    )
  version = record.get("format", 1)
  if type(version) is not int or version != FORMAT:
    raise UserError(
      f"{path} has format {version!r}, and this version reads {FORMAT}; score the run again with"
      " --mode=evaluate, or use the version that wrote it"
    )
  try:
    for key, kind in _RECORD_TYPES.items():
      if type(record.get(key, kind())) is not kind:
        raise TypeError(f"{key} is {record[key]!r}")
    _ = record["method"], record["model"], record["seed"], record["table"]["metrics"]
    tables = [table_rows(record), *record.get("held_out", {}).values()]
    figures = [row for table in tables for row in table.values()]
    for row in [*figures, *record.get("paired", {}).values()]:
      for name in (*COLUMNS, _DIFFERENCE):
        for key in (name, f"{name}_low", f"{name}_high"):
          if type(row.get(key, 0)) not in (int, float):
            raise TypeError(f"{key} is {row[key]!r}")
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} is damaged ({reason}); restore it or score the run again") from None


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
  record = runs[0].record
  tables = [Table(record.get("test", ""), False, _rows([table_rows(run.record) for run in runs]))]
  for source in dict.fromkeys(name for run in runs for name in run.record.get("held_out", {})):
    each = [run.record.get("held_out", {}).get(source, {}) for run in runs]
    tables.append(Table(source, True, _rows(each)))
  paired = [run.record.get("paired", {}) for run in runs]
  differences = []
  for other in dict.fromkeys(name for rows in paired for name in rows):
    found = _estimate([rows[other] for rows in paired if other in rows], _DIFFERENCE)
    if found is not None:
      differences.append(Difference(title, runs[0].last_row, title, other, found))
  return RunGroup(title, tuple(runs), tuple(tables), tuple(differences))


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
    for row, figures in table_rows(run.record).items()
    for name in COLUMNS
    if not math.isfinite(figures.get(name, 0))
  ]
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
      sizes.pop() if len(sizes) == 1 else None, paired[_DIFFERENCE], None, low, high
    )
    rows = group.runs[0].last_row, against.runs[0].last_row
    differences.append(Difference(group.title, rows[0], against.title, rows[1], estimate))
  return differences, notes


def _mean_matches(group: RunGroup) -> dict[QuestionKey, float] | str:
  """Exact match of the last row by question, the mean over the runs; or why there is none."""
  each = [last_row_matches(run) for run in group.runs]
  for matches in each:
    if isinstance(matches, str):
      return matches
    if matches.keys() != each[0].keys():
      return "its runs answered other questions"
  return {question: float(np.mean([own[question] for own in each])) for question in each[0]}
