"""Pictures of a run: report.png with scores and loss curves, gate.png with the deferral curve.

matplotlib is imported inside the functions, since it is slow to import.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.files import atomic_file
from frozen_jax.core.object_store import AnyPath
from frozen_jax.evaluation.gate import Curves

# The score that bars show is the first of these that any system has.
MAIN_METRICS = ("score", "exact_match", "loss", "accuracy")
_LABELS = {
  "score": "score (%)",
  "exact_match": "exact match (%)",
  "f1": "F1 (%)",
  "accuracy": "accuracy (%)",
  "rouge_l": "ROUGE-L (%)",
  "loss": "loss (nats per target)",
}
_COLUMNS = 3  # of the grid of loss curves
_WIDTH, _DPI = 12.0, 100  # inches and pixels per inch: 1200 pixels
_NAME_WIDTH = 34  # characters of a line of a system's name
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_COLORS = {"bar": "#4477aa", "baseline": "#bbbbbb", "validation": "#cc6677", "gate": "#4477aa"}

SystemMetrics = Mapping[str, Mapping[str, float]]  # {system: {metric: value}}


def metric_label(name: str) -> str:
  """The name of a metric with its unit, for an axis."""
  return _LABELS.get(name, name.replace("_", " "))


def draw_report(
  path: AnyPath,
  metrics_lines: Sequence[Mapping[str, Any]],
  rows: SystemMetrics,
  held_out: Mapping[str, SystemMetrics] | None = None,
  baseline: str = "",
) -> None:
  """Writes report.png: scores as horizontal bars, and the loss curves of each stage.

  Args:
    path: of the PNG file.
    metrics_lines: lines of metrics.jsonl.
    rows: metrics of each system on the test data, with NAME_low and NAME_high for error bars.
    held_out: likewise for each held-out source.
    baseline: the system whose score is drawn as a vertical line.
  """
  with atomic_file(path) as temporary:
    report_figure(metrics_lines, rows, held_out, baseline).savefig(
      temporary, dpi=_DPI, format="png"
    )


def draw_gate(
  path: AnyPath,
  curves: Curves,
  point: Mapping[str, float],
  budget: float,
  metric: str = "exact_match",
) -> None:
  """Writes gate.png: a metric against mean compute, for the gate, a random one and an oracle.

  Args:
    path: of the PNG file.
    curves: of `evaluation.gate.deferral_curves`.
    point: `compute` and `accuracy` of the gate in use (`operating_point`).
    budget: the compute budget that the gate was fitted for, passes a row.
    metric: the name of the metric that the curves are of.
  """
  with atomic_file(path) as temporary:
    gate_figure(curves, point, budget, metric).savefig(temporary, dpi=_DPI, format="png")


def report_figure(
  metrics_lines: Sequence[Mapping[str, Any]],
  rows: SystemMetrics,
  held_out: Mapping[str, SystemMetrics] | None = None,
  baseline: str = "",
) -> Any:
  """The matplotlib figure of `draw_report`."""
  from matplotlib.figure import Figure

  groups = {"test data": rows, **{f"held out: {name}": of for name, of in (held_out or {}).items()}}
  groups = {name: of for name, of in groups.items() if _main_metric(of)}
  stages = list(dict.fromkeys(line["stage"] for line in metrics_lines if _is_training(line)))
  num_bars = sum(len(of) for of in groups.values())
  bars_height = 0.8 + 0.42 * num_bars + 0.75 * len(groups)
  curve_rows = -(-len(stages) // _COLUMNS)
  curves_height = 3.2 * curve_rows
  figure = Figure(figsize=(_WIDTH, bars_height + curves_height), layout="constrained")
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
  heights = [bars_height] + ([curves_height] if stages else [])
  parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
  ratios = [len(of) + 0.6 for of in groups.values()]
  axes = parts[0].subplots(max(len(groups), 1), 1, height_ratios=ratios or None, squeeze=False)
  for axis, (title, of) in zip(axes[:, 0], groups.items(), strict=False):
    _draw_bars(axis, title, of, baseline, _axis_end(list(groups.values()), _main_metric(of)))
  if stages:
    columns = min(max(len(stages), 2), _COLUMNS)  # a single stage has half of the width
    grid = parts[1].subplots(curve_rows, columns, squeeze=False)
    for axis in grid.flat[len(stages) :]:
      axis.set_axis_off()
    for axis, stage in zip(grid.flat, stages, strict=False):
      _draw_losses(axis, stage, [line for line in metrics_lines if line["stage"] == stage])
  return figure


def gate_figure(curves: Curves, point: Mapping[str, float], budget: float, metric: str) -> Any:
  """The matplotlib figure of `draw_gate`."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9.0, 5.2), layout="constrained")
  axis = figure.subplots()
  styles = {
    "gate": {"color": _COLORS["gate"], "linewidth": 2.2},
    "random": {"color": "0.45", "linestyle": "--"},
    "oracle": {"color": _COLORS["validation"], "linestyle": "-."},
  }
  for name, curve in curves._asdict().items():
    label = f"{name} (area {curve.area:.1f})"
    axis.plot(curve.compute, curve.accuracy, label=label, **styles[name])
  axis.axvline(budget, color="0.35", linestyle=":", label=f"budget ({budget:.2f} passes)")
  axis.plot(point["compute"], point["accuracy"], "ko", markersize=7, label="chosen gate", zorder=5)
  title, leftwards = metric_label(metric).partition(" (")[0], point["compute"] > 1.6
  axis.annotate(
    f"chosen: {point['accuracy']:.1f} at {point['compute']:.2f} passes",
    (point["compute"], point["accuracy"]),
    (-12 if leftwards else 12, -18),
    textcoords="offset points",
    ha="right" if leftwards else "left",
    bbox=_LABEL_BOX,
  )
  axis.set(
    title=f"{title[:1].upper()}{title[1:]} against mean compute",
    xlabel="mean compute (passes a question)",
    ylabel=metric_label(metric),
    xlim=(0.98, max(curves.gate.compute[-1], budget) + 0.02),
  )
  lowest, highest = _range([curve.accuracy for curve in curves])
  axis.set_ylim(lowest, highest)
  axis.grid(color="0.92")
  axis.set_axisbelow(True)
  figure.legend(loc="outside right upper", frameon=False)
  return figure


def _range(values: Sequence[np.ndarray]) -> tuple[float, float]:
  """An axis for these percentages: with some room, and of 10 points at least."""
  lowest, highest = (float(pick([pick(one) for one in values])) for pick in (np.min, np.max))
  room = max(0.1 * (highest - lowest), 5 - (highest - lowest) / 2)
  return lowest - room, highest + room


def _main_metric(rows: SystemMetrics) -> str:
  """The metric that bars show; "" if no system has any."""
  return next(
    (name for name in MAIN_METRICS if any(name in metrics for metrics in rows.values())), ""
  )


def _is_training(line: Mapping[str, Any]) -> bool:
  return line["split"] == "train" and line.get("loss") is not None


def _axis_end(groups: Sequence[SystemMetrics], metric: str) -> float:
  """Where the bars' axis ends: the same for all metrics in percent, with room for the numbers.

  It is 1 where all bars are 0.
  """
  in_percent = lambda name: name != "loss"
  ends = [
    metrics.get(f"{name}_high", metrics[name])
    for rows in groups
    for name in [_main_metric(rows)]
    for metrics in rows.values()
    if math.isfinite(metrics.get(name, math.nan)) and in_percent(name) == in_percent(metric)
  ]
  longest = max([*ends, 0.0])
  return 1.2 * longest if longest else 1.0


def _draw_bars(axis: Any, title: str, rows: SystemMetrics, baseline: str, axis_end: float) -> None:
  """One horizontal bar a system, the first on top, with its number and its interval."""
  metric = _main_metric(rows)
  scored = {name: one for name, one in rows.items() if math.isfinite(one.get(metric, math.nan))}
  values = [metrics[metric] for metrics in scored.values()]
  positions = range(len(scored))
  colors = [_COLORS["baseline" if name == baseline else "bar"] for name in scored]
  axis.barh(positions, values, height=0.62, color=colors)
  number = "{:.3f}" if metric == "loss" else "{:.1f}"
  for position, (value, metrics) in enumerate(zip(values, scored.values(), strict=True)):
    low, high = (metrics.get(f"{metric}_{bound}", value) for bound in ("low", "high"))
    if high > low:
      axis.errorbar(
        value,
        position,
        xerr=[[value - low], [high - value]],
        color="0.15",
        capsize=3,
        linewidth=1.2,
      )
    text = number.format(value) + (f"  ({low:.1f} to {high:.1f})" if high > low else "")
    axis.annotate(
      text,
      (max(high, value), position),
      (6, 0),
      textcoords="offset points",
      va="center",
      fontsize=9,
      bbox=_LABEL_BOX,
    )
  if baseline in scored:
    axis.axvline(scored[baseline][metric], color="0.35", linestyle="--", linewidth=1, zorder=0.5)
  axis.set_yticks(positions, [textwrap.fill(name, _NAME_WIDTH) for name in scored], fontsize=9)
  axis.invert_yaxis()
  axis.set_xlim(0, axis_end)
  interval = ", 95% intervals" if any(f"{metric}_low" in row for row in scored.values()) else ""
  line = f", dashed: {baseline}" if baseline in scored else ""
  axis.set_title(f"{title}: {metric_label(metric)}{interval}{line}", loc="left", fontsize=10)
  axis.spines[["top", "right"]].set_visible(False)


def _draw_losses(axis: Any, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
  """The training loss as a line and the validation loss as points, over the steps of a stage."""
  for split, style in (
    ("train", {"color": _COLORS["bar"], "linewidth": 1.3}),
    ("validation", {"color": _COLORS["validation"], "marker": "o", "markersize": 4}),
  ):
    points = [
      (line["step"], line["loss"])
      for line in lines
      if line["split"] == split and line.get("loss") is not None
    ]
    if points:
      axis.plot(*zip(*points, strict=True), label=split, **style)
  axis.set_title(f"stage {stage}", fontsize=10)
  axis.set(xlabel="step", ylabel="loss (nats per target)")
  axis.locator_params(axis="x", integer=True)
  axis.grid(color="0.92")
  axis.legend(frameon=False)
