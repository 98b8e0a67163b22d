"""A record as text for the terminal."""

import itertools
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core.object_store import AnyPath, any_path
from frozen_jax.evaluation.gains import EXACT_MATCH, LOSS
from frozen_jax.pipelines.load_adapter import ADAPTER
from frozen_jax.run.results.records import Record, rows_with_training
from frozen_jax.run.workdir import PREDICTIONS
from frozen_jax.sharding.hosts import is_first_host

COLUMNS = (
  *("score", "exact_match", "f1", "rouge_l", "accuracy", "loss", "perplexity"),
  *("gold_read", "answer_read", "tokens_read"),  # of a reader's prompts
  "passes",  # a row, where a gate leaves some out
  *("gflop", "parameters", "seconds"),
)

_INTERVAL = "95%"
WIDTH = 100  # of what is printed

# Of each column that needs it, in a line of at most 100 columns.
_MEANINGS = {
  "score": "% right: accuracy of rows with choices, ROUGE-L of all others; mean over data sets",
  "exact_match": "% of answers that equal an accepted one, but for case, punctuation and articles",
  _INTERVAL: "interval of the exact match, by bootstrap over the questions",
  "f1": "% overlap of the words of an answer with those of an accepted one",
  "rouge_l": "% overlap with the target, by their longest common subsequence of words",
  "accuracy": "% of answers each of whose tokens is the likeliest after the true ones before it",
  "loss": "of a target token in nats: minus the natural logarithm of its probability, on average",
  "perplexity": "e to the power of the loss",
  "gold_read": "% of questions for which a passage that answers them was read",
  "answer_read": "% of questions for which a passage with an accepted answer in it was read",
  "tokens_read": "tokens of a prompt",
  "passes": "passes of the LM a question",
  "gflop": "1e9 FLOPs to read a question of mean length, up to the answer's first token",
  "parameters": "trained numbers",
  "seconds": "of training, wall clock",
}
# Of a gain: its title, decimals, and the sign of what is better.
_GAINED = {EXACT_MATCH: ("exact match, points", 1, 1), LOSS: ("loss, nats a target", 3, -1)}
_COSTS = {  # how a figure is written, and what it counts
  "gflop": ("{:.3f}", "GFLOP a question"),
  "parameters": ("{:,}", "trained numbers"),
  "seconds": ("{:.0f}", "s of training"),
}
_CHOSEN = "% of rows whose right choice is the likeliest"


def say(*lines: str) -> None:
  """Prints lines, on one host only."""
  if is_first_host():
    print(*lines, sep="\n", flush=True)


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """One line a row, one column a figure that any of them has; right-aligned text.

  Columns that do not fit `WIDTH` follow in a further block, after the rows' names. After the exact
  match of questions comes its 95% interval.
  """
  names = _columns(rows)
  return _aligned(
    names,
    {row: [_figure_cell(figures, name) for name in names] for row, figures in rows.items()},
  )


def _aligned(names: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
  """A table with these columns: the cells of each row by its name."""
  first = max(map(len, cells)) + 2
  widths = [
    max(len(name), *(len(own[index]) for own in cells.values())) + 2
    for index, name in enumerate(names)
  ]
  blocks: list[list[int]] = []
  for index, width in enumerate(widths):
    if not blocks or first + sum(widths[one] for one in blocks[-1]) + width > WIDTH:
      blocks.append([])
    blocks[-1].append(index)
  texts = []
  for block in blocks:
    head = " " * first + "".join(f"{names[one]:>{widths[one]}}" for one in block)
    lines = [
      f"{row:<{first}}" + "".join(f"{own[one]:>{widths[one]}}" for one in block)
      for row, own in cells.items()
    ]
    texts.append("\n".join([head, *lines]))
  return "\n\n".join(texts)


def _columns(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
  columns = [name for name in COLUMNS if any(name in figures for figures in rows.values())]
  if any("exact_match_low" in figures for figures in rows.values()):
    columns.insert(columns.index("exact_match") + 1, _INTERVAL)
  return columns


def explained(*tables: Mapping[str, Mapping[str, float]]) -> list[str]:
  """What the columns of some tables mean, one a line, where a name does not say it."""
  shown = dict.fromkeys(name for rows in tables for name in _columns(rows))
  meanings = {**_MEANINGS, "accuracy": _CHOSEN if "score" in shown else _MEANINGS["accuracy"]}
  width = max((len(name) for name in shown if name in meanings), default=0) + 2
  return [f"{name:<{width}}{meanings[name]}" for name in shown if name in meanings]


def record_text(record: Record, titles: Mapping[str, str]) -> list[str]:
  """The tables of a record and what it says of baseline, frozen weights and earlier skills."""
  rename = lambda rows: {titles.get(name, name): figures for name, figures in rows.items()}
  parts = [metrics_table(rename(rows_with_training(record)))]
  for name, rows in record.get("held_out", {}).items():
    parts.append(f"held out: {name}\n{metrics_table(rename(rows))}")
  if "by_kind" in record:
    parts.append(_kinds_table(record, titles))
  parts.append(
    "\n".join(explained(rows_with_training(record), *record.get("held_out", {}).values()))
  )
  lines = ["\n\n".join(parts), *_difference(record), *_left_out(record)]
  for name, found in record.get("forgetting", {}).items():
    weights = "unchanged, bit by bit" if found["identical"] else f"{found['change']:+.1f}%"
    lines.append(
      f"perplexity on general text: {found['before']:.2f} before; {name}: {weights}"
      f" ({found['with_method_change']:+.1f}% with its trained parts on)"
    )
  for name, found in record.get("extensibility", {}).items():
    same = "unchanged, bit by bit" if found["identical"] else "changed"
    lines.append(
      f"skill {name} after the stages that follow it: outputs {same}"
      f" ({found['changed']} of {found['prompts']} answers are others)"
    )
  for name, changed in record.get("used_with", {}).items():
    for key, value in changed.items():
      lines.append(f"{name} answered with {key}={value['used']}, trained with {value['trained']}")
  return lines + [line for gain in record.get("gains", ()) for line in _gain_lines(gain, record)]


def closing_tip(folder: str | AnyPath) -> list[str]:
  """Where the adapter of a finished run is, and how to ask it one of the run's own questions."""
  folder = any_path(folder)
  lines = [f"The adapter is in {folder / ADAPTER}."]
  if question := _short_question(folder / PREDICTIONS):
    asked = shlex.join(["python", "-m", "frozen_jax.tools.ask", str(folder), question])
    lines[0] += f" Ask it:\n  {asked}"
  return lines


def _short_question(path: AnyPath) -> str:
  """A question of predictions.jsonl that fits a line, as it was asked; else "" """
  try:
    with path.open(encoding="utf-8") as lines:
      rows = [json.loads(line) for line in itertools.islice(lines, 100)]
  except (OSError, ValueError):
    return ""
  asked = (row.get("original_question") or row.get("input", "") for row in rows)
  return next((one for one in asked if 0 < len(one) <= 60 and one.isprintable()), "")


def row_titles(methods: Mapping[str, str]) -> dict[str, str]:
  """{stage: method} -> the titles of the stages' rows: "stage: method", or the name of both."""
  return {name: name if name == method else f"{name}: {method}" for name, method in methods.items()}


def _kinds_table(record: Record, titles: Mapping[str, str]) -> str:
  """The exact match of each row, a column for each kind of question."""
  by_kind = record["by_kind"]
  cells = {
    titles.get(row, row): [_kind_cell(own["rows"].get(row)) for own in by_kind.values()]
    for row in rows_with_training(record)
    if any(row in own["rows"] for own in by_kind.values())
  }
  return f"exact match by kind of question (95%)\n{_aligned(list(by_kind), cells)}"


def _kind_cell(figures: Mapping[str, float] | None) -> str:
  if figures is None:
    return "-"
  low, high = figures["exact_match_low"], figures["exact_match_high"]
  return f"{figures['exact_match']:.1f} ({low:.1f}-{high:.1f})"


def _difference(record: Record) -> list[str]:
  """The last row's exact match against the baseline's, where both have one; and by kind."""
  name = record["table"]["baseline"]
  paired = {"": record.get("paired", {})}
  paired |= {f", {kind}": own["paired"] for kind, own in record.get("by_kind", {}).items()}
  return [
    f"exact match against {name}{kind}: {own[name]['difference']:+.1f} points"
    f" (95%: {own[name]['difference_low']:+.1f} to {own[name]['difference_high']:+.1f})"
    for kind, own in paired.items()
    if name in own
  ]


def _gain_lines(gain: Mapping[str, Any], record: Record) -> list[str]:
  """What a gain is, in all and by kind of question, and what each of its two rows costs."""
  row, against = (rows_with_training(record)[gain[name]] for name in ("row", "against"))
  costs = []
  for name, (form, what) in _COSTS.items():
    if name in row and name in against:
      new, old = form.format(row[name]), form.format(against[name])
      if new != old:
        costs.append(f"{new} instead of {old} {what}")
  cells = {"  in all": gain_cells(gain)}
  cells |= {f"  {kind}": gain_cells(one) for kind, one in gain.get("by_kind", {}).items()}
  names = [title for name, (title, _, _) in _GAINED.items() if name in gain]
  table = _aligned(names, {row: [own.get(one, "-") for one in names] for row, own in cells.items()})
  cost = f"  it costs {', '.join(costs)}" if costs else ""
  return [
    f"what {gain['what']} gained ({gain['row']} over {gain['against']}), with 95% intervals:",
    *[line.rstrip() for line in table.splitlines()],
    *textwrap.wrap(cost, WIDTH, subsequent_indent="    "),
  ]


def gain_cells(gain: Mapping[str, Any]) -> dict[str, str]:
  """{title: the difference with its interval, and whether it is clear of 0} of what there is."""
  cells = {}
  for name, (title, digits, sign) in _GAINED.items():
    if name in gain:
      mean, low, high = (gain[name][f"difference{end}"] for end in ("", "_low", "_high"))
      worse, better = sorted((sign * low, sign * high))
      verdict = "better" if worse > 0 else "worse" if better < 0 else "not clear of 0"
      numbers = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
      cells[title] = f"{numbers}  {verdict:14}"
  return cells


def _left_out(record: Record) -> list[str]:
  """A line for each stage whose rows were not all trained on whole, and one for the test data."""
  reasons = {
    "skipped": "longer than data.lengths, skipped",
    "truncated": "truncated to data.encoder_length for the text encoder",
    "left_out": "without a target, left out",
  }
  lines = []
  for name, stage in record.get("stages", {}).items():
    counts = stage.get("examples", {})
    if said := [f"{counts[key]} {text}" for key, text in reasons.items() if counts.get(key)]:
      lines.append(f"rows of training data, stage {name}: {'; '.join(said)}")
  if skipped := record["metrics"].get("skipped"):
    lines.append(f"rows of test data: {skipped:.0f} too long, skipped")
  return lines


def _figure_cell(figures: Mapping[str, Any], column: str) -> str:
  if column == _INTERVAL and "exact_match_low" in figures:
    return f"{figures['exact_match_low']:.1f}-{figures['exact_match_high']:.1f}"
  if column not in figures:
    return "-"
  value = figures[column]
  return f"{value:,}" if column == "parameters" else f"{value:.3f}"
