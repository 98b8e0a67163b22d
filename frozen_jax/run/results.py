"""What a run tells of itself at its end: results.json, by_task.json, and the table's titles."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.types import Tree
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.intervals import paired
from frozen_jax.run import options as experiment
from frozen_jax.run import report, workdir
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.scores import Scores
from frozen_jax.run.stages import System
from frozen_jax.sharding.hosts import is_first_host

Results = dict[str, Any]


def results_of(
  options: experiment.Options,
  lm: FrozenLM,
  systems: dict[str, System],
  scores: Mapping[str, Scores],
  unchanged: bool,
) -> Results:
  """What results.json holds, but for `seconds`."""
  rows = {name: own.figures for name, own in scores.items()}
  name, last = list(systems.items())[-1]
  held = {
    source: {row: own.held_out[source] for row, own in scores.items() if source in own.held_out}
    for source in last.options["data"]["held_out"]
  }
  baseline = options["baseline"] if options["baseline"] in rows else "zero_shot"
  return {
    "method": last.options["method"],
    "model": lm.name,
    "metrics": rows[name] | {"tokens_per_second": last.history.tokens_per_second},
    "baseline": {"name": baseline} | rows[baseline],
    "rows": rows,
    "paired": _paired(scores, name),
    "held_out": held,
    "frozen_fingerprint": lm.fingerprint,
    "encoder_fingerprint": getattr(lm.encoder, "fingerprint", ""),
    "frozen_unchanged": unchanged,
    "trainable_parameters": _size(last.trained),
    "frozen_parameters": frozen_size(lm),
    "steps": last.history.steps,
    "stages": {
      key: {
        "steps": system.history.steps,
        "best_step": system.history.best_step,
        "validation_loss": system.history.best_figures.get("loss"),
        "seconds": round(system.history.seconds, 3),
        "tokens_per_second": system.history.tokens_per_second,
        "trainable_parameters": _size(system.trained),
        "checkpoint_bytes": system.history.checkpoint_bytes,
        "examples": dict(system.counts),
      }
      for key, system in systems.items()
    },
    "table": report.tables(
      titled(rows, systems), {name: titled(own, systems) for name, own in held.items()}
    ),
  }


def paired_lines(results: Results) -> list[str]:
  """The last system's exact match against the baseline's as a line of text, where both have one."""
  found = results["paired"].get(results["baseline"]["name"])
  if found is None:
    return []
  low, high = found["difference_low"], found["difference_high"]
  return [
    f"exact match against {results['baseline']['name']}: {found['difference']:+.1f} points"
    f" (95%: {low:+.1f} to {high:+.1f})"
  ]


def write_by_task(folder: pathlib.Path, scores: Mapping[str, Scores]) -> None:
  """Adds to by_task.json, {source: {row of the table: figures by data set and template}}."""
  path = folder / workdir.BY_TASK
  tables: dict[str, dict[str, Any]] = workdir.read_json(path) if path.exists() else {}
  for row, own in scores.items():
    for source, table in own.by_task.items():
      tables.setdefault(source, {})[row] = table
  if tables:
    report.write_json(path, tables)


def titled(rows: Mapping[str, Any], systems: Mapping[str, System]) -> dict[str, Any]:
  """The rows under names that say which method a stage trained."""
  methods = {name: system.method.name for name, system in systems.items()}
  return {f"{n}: {methods[n]}" if n in methods else n: figures for n, figures in rows.items()}


def frozen_size(lm: FrozenLM) -> int:
  """Frozen parameters of the LM and the encoder, whatever they are quantised to."""
  size = _size(decoder.param_shapes(lm.config))
  return size + (0 if lm.encoder is None else _size(encoder.param_shapes(lm.encoder.config)))


def say(*lines: str) -> None:
  """Prints lines, on one host alone."""
  if is_first_host():
    print(*lines, sep="\n", flush=True)


def _paired(scores: Mapping[str, Scores], last: str) -> dict[str, dict[str, float]]:
  """How much higher the last system's exact match is than that of each other row, by questions."""
  exact = {
    name: np.array([grade([row["prediction"]], [row["answers"]])["exact_match"] for row in rows])
    for name, rows in ((name, own.predictions) for name, own in scores.items())
    if rows and "exact_match_low" in scores[name].figures
  }
  if last not in exact:
    return {}
  return {name: paired(own, exact[last]) for name, own in exact.items() if name != last}


def _size(tree: Tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
