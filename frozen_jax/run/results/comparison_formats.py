"""A comparison of runs (`run.comparison`) as text: terminal, Markdown, CSV, JSON."""

import csv
import dataclasses
import io
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from frozen_jax.core.json_row import without_nan
from frozen_jax.core.streams import is_unicode
from frozen_jax.evaluation.gains import EXACT_MATCH, LOSS
from frozen_jax.run.results.compared_runs import Estimate, Run
from frozen_jax.run.results.comparison import Comparison, Difference, RunGroup, Table
from frozen_jax.run.results.records import WHOLE
from frozen_jax.run.results.report import COLUMNS

CSV_COLUMNS = ("group", "row", "metric", "n", "mean", "standard_error", "low", "high", "test")

_ORIGIN = ("created", "version", "commit", "command", "device", "seed")
_WIDTH = 100
_GAP = 2  # between columns


class Grid(NamedTuple):
  """A table as text: the first cell of each line is a row's name. units: one a column, or ""."""

  title: str
  header: Sequence[str]
  units: Sequence[str]
  lines: Sequence[Sequence[str]]


def terminal_text(comparison: Comparison) -> str:
  """Aligned text of at most 100 columns; a wide table continues in further blocks of columns."""
  parts = ["\n".join(line for group in comparison.groups for line in _sources(group))]
  for number, group in enumerate(comparison.groups, 1):
    parts.append("\n".join(_wrapped(f"{number}. {group.title}") + _wrapped(_caption(group))))
    parts += [_aligned(grid) for grid in _group_grids(group, comparison)]
  parts += [_aligned(grid) for grid in _between_grids(comparison)]
  parts += ["\n".join(_wrapped(f"note: {note}")) for note in comparison.notes]
  return "\n\n".join(parts)


def markdown_text(comparison: Comparison) -> str:
  """Tables for a page, after the command, device and date of every run."""
  sources = [
    (
      run.name,
      *(_origin(run)[key] for key in ("seed", "command", "device", "created")),
      " ".join(filter(None, (_origin(run)["version"], _origin(run)["commit"]))),
    )
    for group in comparison.groups
    for run in group.runs
  ]
  header = ("run", "seed", "command", "device", "date", "version")
  lines = [[_shown(cell) for cell in source] for source in sources]
  for line in lines:
    line[2] = f"`` {line[2]} ``" if "`" in line[2] else f"`{line[2]}`"
  parts = [_piped(Grid("", header, [""] * len(header), lines))]
  for number, group in enumerate(comparison.groups, 1):
    parts += [f"## {number}. {_escaped(group.title)}", _escaped(_caption(group))]
    parts += [_piped(grid) for grid in _group_grids(group, comparison)]
  between = _between_grids(comparison)
  parts += ["## Between groups"] * bool(between) + [_piped(grid) for grid in between]
  if comparison.notes:
    parts.append("\n".join(f"- {_escaped(note)}" for note in comparison.notes))
  return "\n\n".join(parts)


def csv_text(comparison: Comparison) -> str:
  """One line a row and metric. A difference has the row `ROW - OTHER`, one between groups also the
  group `GROUP - OTHER`; what has no value is empty."""
  lines: list[tuple[str, str, str, Estimate, str]] = []
  for group in comparison.groups:
    for table in group.tables:
      for row, estimates in table.rows.items():
        metric = "exact_match, {}" if table.by_kind else "{}"
        lines += [
          (group.title, row, metric.format(name), one, table.test)
          for name, one in estimates.items()
        ]
    lines += [_csv_difference(one, group.tables[0].test) for one in group.differences]
    lines += [
      (
        *(group.title, f"{one.gain.row} - {one.gain.against}"),
        *(f"{name}_gain" + (f", {one.kind}" if one.kind else ""), estimate, group.tables[0].test),
      )
      for one in group.gains
      for name, estimate in one.estimates.items()
    ]
  tests = {group.title: group.tables[0].test for group in comparison.groups}
  lines += [_csv_difference(one, tests[one.group]) for one in comparison.differences]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(CSV_COLUMNS)
  for *names, estimate, test in lines:
    writer.writerow([*names, *dataclasses.astuple(estimate), test])
  return text.getvalue().removesuffix("\n")


def json_text(comparison: Comparison) -> str:
  """`json_value` as text."""
  ascii_alone = not is_unicode(sys.stdout)
  value = json_value(comparison)
  return json.dumps(value, indent=2, ensure_ascii=ascii_alone, allow_nan=False)


def json_value(comparison: Comparison) -> dict[str, Any]:
  """The comparison as an object, with the origin of each run; null for what has no value."""
  groups = [
    {
      "title": group.title,
      **_model(group),
      "runs": [{"name": run.name, "path": str(run.path)} | _origin(run) for run in group.runs],
      "tables": [dataclasses.asdict(table) for table in group.tables],
      "differences": [dataclasses.asdict(one) for one in group.differences],
      "gains": [
        one.gain._asdict()
        | {"kind": one.kind}
        | {name: dataclasses.asdict(estimate) for name, estimate in one.estimates.items()}
        for one in group.gains
      ],
    }
    for group in comparison.groups
  ]
  value = {
    "groups": groups,
    "differences": [dataclasses.asdict(one) for one in comparison.differences],
    "units": dict(comparison.units),
    "notes": list(comparison.notes),
  }
  return without_nan(value)


OUTPUT_FORMATS: dict[str, Callable[[Comparison], str]] = {
  "terminal": terminal_text,
  "markdown": markdown_text,
  "csv": csv_text,
  "json": json_text,
}


def _origin(run: Run) -> dict[str, Any]:
  """When and how a run was made, as its record has it; None for what it lacks."""
  return {key: run.record.get(key) for key in _ORIGIN}


def _model(group: RunGroup) -> dict[str, str]:
  record = group.runs[0].record
  return {key: record.get(key, "") for key in ("model", "method", "test")}


def _sources(group: RunGroup) -> list[str]:
  """The runs of a group as lines for the terminal."""
  lines = []
  for run in group.runs:
    origin = {key: _shown(value) for key, value in _origin(run).items()}
    about = f"{run.name}: seed {origin['seed']}, {origin['created']}, {origin['device']}"
    lines += _wrapped(f"{about}, version {origin['version']} {origin['commit']}")
    lines += [f"  {line}" for line in _wrapped(origin["command"], _WIDTH - 2)]
  return lines


def _caption(group: RunGroup) -> str:
  what = ", ".join(f"{key} {value}" for key, value in _model(group).items() if value)
  if len(group.runs) == 1:
    return f"{what}; one run; in parentheses: 95% intervals over test questions"
  seeds = ", ".join(str(run.record["seed"]) for run in group.runs)
  return f"{what}; mean ± standard error over n = {len(group.runs)} runs (seeds {seeds})"


def _group_grids(group: RunGroup, comparison: Comparison) -> list[Grid]:
  grids = [_table_grid(table, comparison.units) for table in group.tables if table.rows]
  if group.differences:
    lines = [
      [
        f"{one.row} - {one.against}" + (f", {one.kind}" if one.kind else ""),
        str(one.estimate.n),
        _estimate_cell(one.estimate, "percent", "+"),
      ]
      for one in group.differences
    ]
    title = f"difference in exact match on {group.tables[0].test or 'the test data'}"
    grids.append(Grid(title, ["rows", "n", "difference"], ["", "", "points"], lines))
  return grids + ([_gains_grid(group)] if group.gains else [])


def _gains_grid(group: RunGroup) -> Grid:
  """What the config states that one row gains over another."""
  lines = []
  for one in group.gains:
    rows = f": {one.gain.row} over {one.gain.against}"
    found = [one.estimates.get(name) for name in (EXACT_MATCH, LOSS)]
    cells = [
      "-" if own is None else _estimate_cell(own, unit, "+")
      for own, unit in zip(found, ("percent", ""), strict=True)
    ]
    n = str(max((own.n or 0 for own in found if own), default=0))
    lines.append([one.gain.what + (f", {one.kind}" if one.kind else rows), n, *cells])
  over = "questions" if len(group.runs) == 1 else "questions and seeds"
  title = f"gains, with 95% intervals paired over {over}"
  header = ["gained by", "n", "exact match", "loss"]
  return Grid(title, header, ["", "", "points", "nats per target"], lines)


def _table_grid(table: Table, units: Mapping[str, str]) -> Grid:
  named = [name for row in table.rows.values() for name in row]
  columns = sorted(set(named)) if table.by_kind else [name for name in COLUMNS if name in named]
  unit_of = lambda column: "percent" if table.by_kind else units.get(column, "")
  lines = []
  for name, row in table.rows.items():
    n = max((one.n or 0 for one in row.values()), default=0)
    cells = [_table_cell(row.get(column), unit_of(column), n) for column in columns]
    lines.append([name, str(n), *cells])
  title = f"held-out data: {table.test}" if table.held_out else ""
  if table.by_kind:
    title = "exact match by kind of question"
  return Grid(title, ["row", "n", *columns], ["", "", *map(unit_of, columns)], lines)


def _between_grids(comparison: Comparison) -> list[Grid]:
  """The differences between groups, as at most one table; groups by their numbers."""
  numbers = {group.title: number for number, group in enumerate(comparison.groups, 1)}
  lines = []
  for one in comparison.differences:
    first, second = numbers[one.group], numbers[one.against_group]
    names = f"{first}. {one.row} - {second}. {one.against}"
    lines.append([names, _estimate_cell(one.estimate, "percent", "+")])
  title = "difference in exact match between groups, with 95% intervals over test questions"
  return [Grid(title, ["group and row", "difference"], ["", "points"], lines)] if lines else []


def _table_cell(estimate: Estimate | None, unit: str, n: int) -> str:
  if estimate is None:
    return "-"
  return _estimate_cell(estimate, unit) + (f" (n = {estimate.n})" if estimate.n != n else "")


def _estimate_cell(estimate: Estimate, unit: str, sign: str = "") -> str:
  """`56.03 ± 0.45` over runs, `56.0 (52.3 to 59.7)` of one run with an interval."""
  several = estimate.standard_error is not None
  digits = 0 if unit == WHOLE else 3 if unit != "percent" else 2 if several else 1
  text = f"{estimate.mean:{sign}.{digits}f}"
  if several:
    return f"{text} ± {estimate.standard_error:.{digits}f}"
  if estimate.low is None or estimate.high is None:
    return text
  return f"{text} ({estimate.low:{sign}.{digits}f} to {estimate.high:{sign}.{digits}f})"


def _aligned(grid: Grid) -> str:
  """A grid in blocks of columns that fit, each with the names of the rows."""
  table = [grid.header, *([grid.units] if any(grid.units) else []), *grid.lines]
  widths = [max(len(line[i]) for line in table) for i in range(len(grid.header))]
  blocks: list[list[int]] = [[]]
  for column in range(1, len(widths)):
    block_width = widths[0] + sum(widths[i] + _GAP for i in blocks[-1])
    if blocks[-1] and block_width + _GAP + widths[column] > _WIDTH:
      blocks.append([])
    blocks[-1].append(column)
  parts = _wrapped(grid.title)
  for number, block in enumerate(blocks):
    if number:
      parts.append(f"  (continued: columns {', '.join(grid.header[i] for i in block)})")
    for line in table:
      cells = [f"{line[i]:>{widths[i] + _GAP}}" for i in block]
      parts.append((f"{line[0]:<{widths[0]}}" + "".join(cells)).rstrip())
  return "\n".join(parts)


def _piped(grid: Grid) -> str:
  """A grid as a Markdown table, the units in its header."""
  header = [
    f"{name} ({unit})" if unit else name for name, unit in zip(grid.header, grid.units, strict=True)
  ]
  lines = [header, ["---"] * len(header), *grid.lines]
  table = "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)
  return f"{_escaped(grid.title)}\n\n{table}" if grid.title else table


def _csv_difference(one: Difference, test: str) -> tuple[str, str, str, Estimate, str]:
  within = one.group == one.against_group
  group = one.group if within else f"{one.group} - {one.against_group}"
  metric = "exact_match_difference" + (f", {one.kind}" if one.kind else "")
  return group, f"{one.row} - {one.against}", metric, one.estimate, test


def _shown(value: Any) -> str:
  return "-" if value in (None, "") else str(value)


def _escaped(text: str) -> str:
  return " ".join(text.split()).replace("|", "\\|")


def _wrapped(text: str, width: int = _WIDTH) -> list[str]:
  return textwrap.wrap(text, width, break_on_hyphens=False)
