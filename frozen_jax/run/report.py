"""A record as text for the terminal."""

from collections.abc import Mapping
from typing import Any

from frozen_jax.run.records import Record, table_rows
from frozen_jax.sharding.hosts import is_first_host

COLUMNS = (
  *("score", "exact_match", "f1", "rouge_l", "accuracy", "loss", "perplexity"),
  *("gold_read", "answer_read", "tokens_read"),  # of a reader's prompts
  "passes",  # a row, where a gate leaves some out
)

_INTERVAL = "95%"


def say(*lines: str) -> None:
  """Prints lines, on one host only."""
  if is_first_host():
    print(*lines, sep="\n", flush=True)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """One line a row, one column a figure that any of them has; right-aligned text.

  After the exact match of questions comes its 95% interval.
  """
  columns = [name for name in COLUMNS if any(name in figures for figures in rows.values())]
  if any("exact_match_low" in figures for figures in rows.values()):
    columns.insert(columns.index("exact_match") + 1, _INTERVAL)
  width = max(len(name) for name in rows) + 2
  lines = [" " * width + "".join(f"{name:>13}" for name in columns)]
  for name, figures in rows.items():
    lines.append(f"{name:<{width}}" + "".join(f"{_cell(figures, c):>13}" for c in columns))
  return "\n".join(lines)


def record_text(record: Record, titles: Mapping[str, str]) -> list[str]:
  """The tables of a record and what it says of baseline, frozen weights and earlier skills."""
  rename = lambda rows: {titles.get(name, name): figures for name, figures in rows.items()}
  parts = [table(rename(table_rows(record)))]
  for name, rows in record.get("held_out", {}).items():
    parts.append(f"held out: {name}\n{table(rename(rows))}")
  lines = ["\n\n".join(parts), *_difference(record)]
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
  return lines


def row_titles(methods: Mapping[str, str]) -> dict[str, str]:
  """{stage: method} -> the titles of the stages' rows: "stage: method"."""
  return {name: f"{name}: {method}" for name, method in methods.items()}


def _difference(record: Record) -> list[str]:
  """The last row's exact match against the baseline's, where both have one."""
  name = record["table"]["baseline"]
  found = record.get("paired", {}).get(name)
  if found is None:
    return []
  low, high = found["difference_low"], found["difference_high"]
  return [
    f"exact match against {name}: {found['difference']:+.1f} points"
    f" (95%: {low:+.1f} to {high:+.1f})"
  ]


def _cell(figures: Mapping[str, Any], column: str) -> str:
  if column == _INTERVAL and "exact_match_low" in figures:
    return f"{figures['exact_match_low']:.1f}-{figures['exact_match_high']:.1f}"
  return f"{figures[column]:.3f}" if column in figures else "-"
