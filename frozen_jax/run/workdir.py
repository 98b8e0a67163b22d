"""The workdir: whose run it holds, and where its files are."""

import json
import pathlib
from typing import Any

from frozen_jax.config.dependencies import changed, record
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_json
from frozen_jax.data.sources import open_source
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.run.settings import resolve_run
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.training.checkpoints import FOLDER as CHECKPOINTS
from frozen_jax.training.metrics import FILE as METRICS

CONFIG, RESULTS = "config.json", "results.json"
PREDICTIONS, PLOT, BY_TASK = "predictions.jsonl", "report.png", "by_task.json"
ADAPTER, ADAPTERS, EVALUATIONS = "adapter", "adapters", "evaluations"


def claim(workdir: pathlib.Path, run: RunSettings) -> None:
  """Writes config.json, or checks that the run which is there is this one.

  What its stages do not depend on may differ (`StageSettings.dependencies`), and so may the paths
  of equal data: those of a run that is not complete are compared by its checkpoints. Raises
  UserError, naming the keys that differ, where the workdir holds a run of another config.
  """
  path = workdir / CONFIG
  barrier("config.json looked at")
  if path.exists() and _has_begun(workdir):
    stored = resolve_run(read_json(path))
    differing = _differing(run, stored)
    if not differing and (workdir / RESULTS).exists():
      differing = _other_data(run, stored)
    if differing:
      raise UserError(
        f"{workdir} holds a run of another config (different: {', '.join(differing[:5])}); choose"
        " another --workdir, or remove that folder"
      )
  barrier("config.json compared")
  if is_first_host() and not (workdir / RESULTS).exists():
    write_json(path, run.values)
  barrier("config.json written")


def _differing(run: RunSettings, stored: RunSettings) -> list[str]:
  """The keys in which the stages of two runs differ."""
  if [stage.name for stage in run.stages] != [stage.name for stage in stored.stages]:
    return ["stage_order"]
  keys: list[str] = []
  for stage, before in zip(run.stages, stored.stages, strict=True):
    keys += changed(stage.dependencies(), record(before.dependencies()))
  return list(dict.fromkeys(keys))


def _other_data(run: RunSettings, stored: RunSettings) -> list[str]:
  """The keys of training and validation data whose contents differ, where they are named anew."""
  keys: list[str] = []
  for stage, before in zip(run.stages, stored.stages, strict=True):
    for split in ("train", "validation"):
      now, then = _named(stage, split), _named(before, split)
      if now == then:
        continue
      try:
        digest = _digest(*then)
      except UserError:  # the files are not where they were
        continue
      if digest != _digest(*now):
        keys.append(f"data.{split}")
  return list(dict.fromkeys(keys))


def _named(stage: StageSettings, split: str) -> tuple[str, tuple[str, ...], str]:
  """The data of a split as a config names them, with the fields and templates that apply."""
  data = stage.data
  return getattr(data, split), data.fields, data.templates


def _digest(spec: str, fields: tuple[str, ...], templates: str) -> str:
  return open_source(spec, fields, templates=templates).digest


def scored_otherwise(workdir: pathlib.Path, run: RunSettings) -> list[str]:
  """The keys of how models are scored, in which a config differs from that of a complete run."""
  stored, now = read_json(workdir / CONFIG), run.values
  keys = [f"evaluate.{key}" for key in now["evaluate"]] + ["data.test", "data.held_out"]
  sections = (key.split(".") for key in keys)
  return [
    f"{section}.{key}"
    for section, key in sections
    if now[section][key] != stored.get(section, {}).get(key, now[section][key])
  ]


def _has_begun(workdir: pathlib.Path) -> bool:
  """Whether anything of a run is there besides its config: a first try may have failed at once."""
  return any((workdir / name).exists() for name in (RESULTS, METRICS, CHECKPOINTS))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from the workdir; UserError where it is missing or damaged."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{path} is missing; is {path.parent} the workdir of a run?") from None
  except ValueError as error:
    raise UserError(f"{path} is damaged ({error}); restore it or train again") from None
