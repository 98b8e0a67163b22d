"""The record of a run or an evaluation, results.json: what was scored, how, when and on what."""

import collections
import datetime
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import jax
import numpy as np

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.files import write_json, write_lines
from frozen_jax.core.json_row import Row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.paths import num_parameters
from frozen_jax.core.version import __version__
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.intervals import means_with_intervals, paired_difference
from frozen_jax.evaluation.plots import draw_report
from frozen_jax.evaluation.scores import Scores
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.pipelines.experiment import RunSettings, TrainedStage
from frozen_jax.run.results.gains import gain_records, kinds_of
from frozen_jax.run.workdir import BY_TASK, PLOT, PREDICTIONS, RESULTS
from frozen_jax.sharding.hosts import barrier, is_first_host

Record = dict[str, Any]

FORMAT = 2  # of results.json
SCRIPT = "frozen-jax"  # of pyproject.toml
# Figures of a row that are its stage's.
_OF_TRAINING = {"parameters": "trainable_parameters", "seconds": "seconds"}
WHOLE = "trained numbers"  # a unit of which there are no parts
UNITS = {
  "loss": "nats per target",
  "perplexity": "exp of the loss",
  "exact_match": "percent",
  "f1": "percent",
  "rouge_l": "percent",
  "accuracy": "percent",
  "score": "percent",
  "tokens_per_second": "real text tokens of training",
  "seconds": "wall clock",
  "gold_read": "percent",
  "answer_read": "percent",
  "tokens_read": "tokens a prompt",
  "passages_read": "passages a prompt",
  "passes": "passes a question",
  "gflop": "1e9 FLOPs a question",
  "parameters": WHOLE,
}


def make_record(
  run: RunSettings,
  lm: FrozenLM,
  method: str,
  scores: Mapping[str, Scores],
  unchanged: bool,
) -> Record:
  """The record of the rows of a table, the last of which is the model's own.

  `metrics` are those of the last row, `baseline` those of the row that `config.baseline` names
  (else of the first), `rows` those of all others; `table` names the rows in order. Other
  sections that would be empty are left out.
  """
  *_, last = scores
  figures = {name: own.metrics for name, own in scores.items()}
  baseline = run.baseline if run.baseline in figures else next(iter(figures))
  test = {source for own in scores.values() for source in own.held_out}
  answered = _answered(scores)
  record = {
    "format": FORMAT,
    **_origin(run),
    "method": method,
    "model": lm.name,
    "test": run.values["data"]["test"],
    "metrics": figures[last],
    "baseline": {"name": baseline} | figures[baseline],
    "rows": {name: own for name, own in figures.items() if name not in (last, baseline)},
    "table": {"rows": list(figures), "metrics": last, "baseline": baseline},
    "paired": _paired(answered, last),
    "by_kind": _by_kind(answered, last),
    "gains": gain_records(run.gains, answered),
    "held_out": {
      source: {row: own.held_out[source] for row, own in scores.items() if source in own.held_out}
      for source in sorted(test)
    },
    "frozen_fingerprint": lm.fingerprint,
    "encoder_fingerprint": getattr(lm.encoder, "fingerprint", ""),
    "frozen_unchanged": unchanged,
    "frozen_parameters": frozen_size(lm),
  }
  empty: tuple[Any, ...] = ({}, [], "", None)
  return {name: value for name, value in record.items() if name == "rows" or value not in empty}


def training_record(trained: Mapping[str, TrainedStage]) -> Record:
  """What a record holds of the training: of the last stage, and of each."""
  *_, last = trained.values()
  return {
    "trainable_parameters": num_parameters(last.model.trained),
    "steps": last.result.steps,
    "stages": {
      name: {
        "method": stage.settings.method,
        "steps": stage.result.steps,
        **_epochs(stage),
        "best_step": stage.result.best_step,
        "validation_loss": stage.result.best_metrics.get("loss"),
        "seconds": round(stage.result.seconds, 3),
        "tokens_per_second": stage.result.tokens_per_second,
        **({"skipped_updates": stage.result.skipped} if stage.result.skipped else {}),
        **({"rolled_back": stage.result.rolled_back} if stage.result.rolled_back else {}),
        "trainable_parameters": num_parameters(stage.model.trained),
        "checkpoint_bytes": stage.result.checkpoint_bytes,
        "examples": dict(stage.counts),
      }
      for name, stage in trained.items()
    },
  }


def _epochs(stage: TrainedStage) -> Record:
  """The epochs that a stage was to take, if these were given, and the rows of one."""
  if not stage.epoch_rows:
    return {}
  return {"epochs": stage.settings.train.epochs, "epoch_rows": stage.epoch_rows}


def table_rows(record: Record) -> dict[str, dict[str, Any]]:
  """The rows of a record's table, in order: {row: figures}."""
  table, baseline = record["table"], dict(record["baseline"])
  baseline.pop("name")
  own = {table["baseline"]: baseline, table["metrics"]: record["metrics"]}
  return {name: own.get(name) or record["rows"][name] for name in table["rows"]}


def rows_with_training(record: Record) -> dict[str, dict[str, Any]]:
  """`table_rows` with what the training of a stage took, as `parameters` and `seconds`."""
  stages = record.get("stages", {})
  rows = {}
  for name, figures in table_rows(record).items():
    stage = stages.get(name, {})
    rows[name] = figures | {key: stage[own] for key, own in _OF_TRAINING.items() if own in stage}
  return rows


def write_record(
  folder: AnyPath,
  record: Record,
  scores: Mapping[str, Scores],
  lines: Sequence[Mapping[str, Any]],
  titles: Mapping[str, str],
) -> None:
  """Writes results.json, predictions.jsonl, by_task.json and report.png; the first is the last.

  The record gets the units of its figures and the hash of predictions.jsonl, which a later
  prediction may overwrite.

  lines: of metrics.jsonl. titles: what a row is called in the picture, where not by its name.
  """
  record["units"] = units_of(record)
  if is_first_host():
    write_lines(folder / PREDICTIONS, side_by_side(scores))
    record["predictions_sha256"] = sha256((folder / PREDICTIONS).read_bytes()).hexdigest()
    tables: dict[str, dict[str, Any]] = {}
    for row, own in scores.items():
      for source, table in own.by_task.items():
        tables.setdefault(source, {})[row] = table
    if tables:
      write_json(folder / BY_TASK, tables)
    rename = lambda rows: {titles.get(name, name): metrics for name, metrics in rows.items()}
    held_out = {name: rename(rows) for name, rows in record.get("held_out", {}).items()}
    baseline = titles.get(record["baseline"]["name"], record["baseline"]["name"])
    draw_report(folder / PLOT, lines, rename(table_rows(record)), held_out, baseline)
    write_json(folder / RESULTS, record)
  barrier("results written")


def side_by_side(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
  """The last row's predictions, each with those of the other rows: `predictions`, by row.

  So are `losses`, of rows in which a question has as many targets as in the last.
  """
  *others, last = scores
  by_row = {name: dict(_numbered(scores[name].predictions)) for name in others}
  rows = []
  for question, row in _numbered(scores[last].predictions):
    found = {name: own[question] for name, own in by_row.items() if question in own}
    same = {name: one for name, one in found.items() if one.get("targets") == row.get("targets")}
    of_others = {
      "predictions": {name: one["prediction"] for name, one in found.items()},
      "losses": {name: one["loss"] for name, one in same.items() if "loss" in one},
    }
    rows.append(row | {key: values for key, values in of_others.items() if values})
  return rows


def _numbered(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
  """((id, the how-manieth row of that id), row) of each row: ids may come again."""
  counts: collections.Counter[str] = collections.Counter()
  for row in rows:
    counts[row["id"]] += 1
    yield (row["id"], counts[row["id"]]), row


def frozen_size(lm: FrozenLM) -> int:
  """Frozen parameters of the LM and the encoder, whatever they are quantised to."""
  size = num_parameters(decoder.param_shapes(lm.config))
  return size + (
    0 if lm.encoder is None else num_parameters(encoder.param_shapes(lm.encoder.config))
  )


def _origin(run: RunSettings) -> Record:
  """When, by which version, from which command and on which device."""
  device = jax.devices()[0]
  return {
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "version": __version__,
    "commit": _commit(),
    "command": command_line(sys.orig_argv),
    "device": f"{jax.device_count()} x {device.device_kind}",
    "seed": run.seed,
  }


def command_line(arguments: Sequence[str]) -> str:
  """The command of a process, to be run again in a shell.

  arguments: of the process (`sys.orig_argv`). A script that pip installed is named without its
  folder, and so is the interpreter.
  """
  python, *others = arguments
  if others and pathlib.PurePath(others[0]).name == SCRIPT:
    return shlex.join([SCRIPT, *others[1:]])
  return shlex.join([pathlib.PurePath(python).name, *others])


def units_of(record: Record) -> dict[str, str]:
  """The units of the figures that a record holds, in the order of `UNITS`."""
  tables = [rows_with_training(record), *record.get("held_out", {}).values()]
  names = {name for table in tables for row in table.values() for name in row}
  return {name: unit for name, unit in UNITS.items() if name in {*names, *record}}


def _commit() -> str:
  """The commit of the checkout that the package is in, "" where it is in none."""
  here = pathlib.Path(__file__).parent
  try:
    found = subprocess.run(
      ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
      capture_output=True,
      text=True,
      timeout=10,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return ""
  return found.stdout.strip()


def _answered(scores: Mapping[str, Scores]) -> dict[str, Sequence[Row]]:
  """The predictions of each row of a table whose answers have an exact match."""
  return {
    name: own.predictions
    for name, own in scores.items()
    if own.predictions and "exact_match_low" in own.metrics
  }


def _graded(rows: Sequence[Row]) -> list[dict[str, float]]:
  return [grade([row["prediction"]], [row["answers"]]) for row in rows]


def _by_kind(answered: Mapping[str, Sequence[Row]], last: str) -> dict[str, Record]:
  """{kind: {"rows": figures of each row, "paired": as in the record}} of questions that name their
  kind; {} where those of the last row are of one kind, or of too many for a table.
  """
  found: dict[str, Record] = {}
  for kind in kinds_of(answered.get(last, ())):
    of_kind = {
      name: own
      for name, rows in answered.items()
      if (own := [row for row in rows if row.get("kind") == kind])
    }
    figures = {
      name: means_with_intervals(_graded(rows)) | {"examples": len(rows)}
      for name, rows in of_kind.items()
    }
    found[kind] = {"rows": figures, "paired": _paired(of_kind, last)}
  return found


def _paired(answered: Mapping[str, Sequence[Row]], last: str) -> dict[str, dict[str, float]]:
  """How much higher the last row's exact match is than that of each other row, by questions."""
  exact = {
    name: np.array([one["exact_match"] for one in _graded(rows)]) for name, rows in answered.items()
  }
  if last not in exact:
    return {}
  return {
    name: paired_difference(own, exact[last])
    for name, own in exact.items()
    if name != last and len(own) == len(exact[last])
  }
