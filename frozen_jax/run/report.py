"""What a run leaves for people: the table, results.json, predictions.jsonl and report.png."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core import files

COLUMNS = (
  *("score", "exact_match", "f1", "rouge_l", "accuracy", "loss", "perplexity"),
  *("gold_read", "answer_read", "tokens_read"),  # of a reader's prompts
  "passes",  # a row, where a gate leaves some out
)

_INTERVAL = "95%"


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """One line a system, one column a figure that any of them has; right-aligned text.

  Behind the exact match of questions stands its 95% interval.
  """
  columns = [name for name in COLUMNS if any(name in figures for figures in rows.values())]
  if any("exact_match_low" in figures for figures in rows.values()):
    columns.insert(columns.index("exact_match") + 1, _INTERVAL)
  width = max(len(name) for name in rows) + 2
  lines = [" " * width + "".join(f"{name:>13}" for name in columns)]
  for name, figures in rows.items():
    lines.append(f"{name:<{width}}" + "".join(f"{_cell(figures, c):>13}" for c in columns))
  return "\n".join(lines)


def _cell(figures: Mapping[str, float], column: str) -> str:
  if column == _INTERVAL and "exact_match_low" in figures:
    return f"{figures['exact_match_low']:.1f}-{figures['exact_match_high']:.1f}"
  return f"{figures[column]:.3f}" if column in figures else "-"


def tables(
  rows: Mapping[str, Mapping[str, float]], held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
  """`table` of the test data, then one of each source that was held out, under its name."""
  parts = [table(rows)]
  parts += [f"held out: {name}\n{table(own)}" for name, own in held_out.items()]
  return "\n\n".join(parts)


def kept(
  forgetting: Mapping[str, Mapping[str, Any]], extensibility: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """A line a method on what it left of the LM, and a line a skill on what later ones left of it."""
  lines = []
  for name, found in forgetting.items():
    weights = "unchanged, bit by bit" if found["identical"] else f"{found['change']:+.1f}%"
    lines.append(
      f"perplexity on general text: {found['before']:.2f} before; {name}: {weights}"
      f" ({found['with_method_change']:+.1f}% with its trained parts on)"
    )
  for name, found in extensibility.items():
    same = "unchanged, bit by bit" if found["identical"] else "changed"
    lines.append(
      f"skill {name} after the stages behind it: outputs {same}"
      f" ({found['changed']} of {found['prompts']} answers are others)"
    )
  return lines


def write_json(path: pathlib.Path, value: Any) -> None:
  """Indented JSON, atomically."""
  files.write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """JSON lines, atomically."""
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  files.write_bytes(path, text.encode())


def draw(path: pathlib.Path, lines: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> None:
  """report.png: the loss curves of each stage, and the scores of the table as bars."""
  from matplotlib.figure import Figure  # slow to import, and needed here alone

  stages = list(dict.fromkeys(line["stage"] for line in lines if line["split"] == "train"))
  figure = Figure(figsize=(4.2 * (len(stages) + 1), 3.6), layout="constrained")
  axes = figure.subplots(1, len(stages) + 1, squeeze=False)[0]
  for axis, stage in zip(axes, stages, strict=False):
    for split, style in (("train", "-"), ("validation", "o--")):
      points = [
        (line["step"], line["loss"])
        for line in lines
        if line["stage"] == stage and line["split"] == split and line.get("loss") is not None
      ]
      if points:
        axis.plot(*zip(*points, strict=True), style, label=split, markersize=4)
    axis.set(title=f"stage {stage}", xlabel="step", ylabel="loss (nats per target)")
    axis.legend()
  score = next(
    name for name in ("score", "exact_match", "loss") if any(name in own for own in rows.values())
  )
  scored = {name: figures[score] for name, figures in rows.items() if score in figures}
  bars = axes[-1].bar(list(scored), list(scored.values()))
  axes[-1].bar_label(bars, fmt="%.3f" if score == "loss" else "%.1f")
  axes[-1].set(title=f"test: {score.replace('_', ' ')}")
  axes[-1].tick_params(axis="x", rotation=20)
  figure.savefig(path, dpi=100)
