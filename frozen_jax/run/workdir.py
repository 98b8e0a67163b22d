"""The workdir: whose run it holds, and where its files are."""

import json
import pathlib
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.run import options as experiment
from frozen_jax.run.report import write_json
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.training.checkpoints import FOLDER
from frozen_jax.training.metrics import FILE

CONFIG, RESULTS = "config.json", "results.json"
PREDICTIONS, PLOT, BY_TASK = "predictions.jsonl", "report.png", "by_task.json"

# What may differ between the command that began a run and the one that goes on with it.
_FREE = ("mesh", "predict", "export", "tensorboard", "until")


def claim(workdir: pathlib.Path, options: experiment.Options) -> None:
  """Writes config.json, or checks that the run which is there is this one.

  Raises UserError, naming the keys that differ, where the workdir holds a run of another config.
  """
  path = workdir / CONFIG
  barrier("config.json looked at")
  if path.exists() and _has_begun(workdir):
    changed = experiment.differences(read_json(path), options, _FREE)
    if changed:
      raise UserError(
        f"{workdir} holds a run of another config (different: {', '.join(changed[:5])}); choose"
        " another --workdir, or remove that folder"
      )
  elif is_first_host():
    write_json(path, options)
  barrier("config.json written")


def _has_begun(workdir: pathlib.Path) -> bool:
  """Whether anything of a run is there beside its config: a first try may have failed at once."""
  return any((workdir / name).exists() for name in (RESULTS, FILE, FOLDER))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from the workdir; UserError where it is missing or damaged."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{path} is missing; is {path.parent} the workdir of a run?") from None
  except ValueError as error:
    raise UserError(f"{path} is damaged ({error}); restore it or train again") from None
