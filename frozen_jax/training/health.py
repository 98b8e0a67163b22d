"""What is done about an update that the step has not applied: its loss is no number, or explodes.

`step.make_train_step` decides that on the device. Here the batch is saved, and the stage stops or
goes on without the update.
"""

import io
import logging
import math
from collections.abc import Mapping

import jax
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_bytes
from frozen_jax.core.object_store import any_path
from frozen_jax.training.checkpoints import Checkpoints
from frozen_jax.training.result import TrainingProgress
from frozen_jax.training.settings import TrainSettings

_LOG = logging.getLogger(__name__)
_REMEDY = (
  "try a lower learning rate, more warm-up steps, clipping of gradients or model.dtype=float32"
)


def check_applied(
  step: int,
  metrics: Mapping[str, float],
  rows: Mapping[str, np.ndarray],
  settings: TrainSettings,
  checkpoints: Checkpoints,
  progress: TrainingProgress,
) -> None:
  """Notes in the progress whether the update of a step was applied (`metrics["skipped"]`).

  rows: this host's, of the step. The batch of the first update in a row that is not applied is
  saved, and the one that stops the stage.

  Raises:
    UserError: it was not, and `settings` say to stop.
  """
  if not metrics["skipped"]:
    progress.skipped_in_a_row = 0
    return
  progress.skipped += 1
  progress.skipped_in_a_row += 1
  skips, in_a_row = settings.on_nonfinite == "skip", progress.skipped_in_a_row
  stops = not skips or in_a_row >= settings.max_skipped
  name = checkpoints.folder.name
  saved = _saved(name, step, metrics, rows, checkpoints) if stops or in_a_row == 1 else ""
  what = f"{_fault(metrics, settings)} at step {step} of stage {name}"
  if not stops:
    _LOG.warning("%s: its update is not applied%s", what, saved and f"; {saved}")
    return
  latest = checkpoints.latest()
  kept = "no checkpoint had been saved" if latest is None else f"step {latest} is saved"
  if skips:
    what += f", and so were {in_a_row} in a row ({settings.section}.max_skipped)"
  other = "" if skips else f", or {settings.section}.on_nonfinite=skip"
  raise UserError(f"{what} ({kept}; {saved}); {_REMEDY}{other}")


def _fault(metrics: Mapping[str, float], settings: TrainSettings) -> str:
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      return f"the {name} is {metrics[name]}"
  limit = f"{settings.section}.max_loss={settings.max_loss:g}"
  return f"the loss is {metrics['loss']:g}, above {limit},"


def _saved(
  stage: str,
  step: int,
  metrics: Mapping[str, float],
  rows: Mapping[str, np.ndarray],
  checkpoints: Checkpoints,
) -> str:
  """Writes this host's rows to the workdir; says where they are, or why not."""
  own = f"_process{jax.process_index()}" if jax.process_count() > 1 else ""
  path = any_path(checkpoints.workdir) / f"bad_batch_{stage}_{step}{own}.npz"
  figures = {name: np.asarray(metrics[name]) for name in ("loss", "grad_norm")}
  data = io.BytesIO()
  np.savez_compressed(data, step=np.int64(step), **figures, **_plain(rows))
  try:
    write_bytes(path, data.getvalue())
  except UserError as error:
    return f"its batch is lost: {error}"
  return f"its batch is in {path}"


def _plain(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays in types that numpy reads by itself, without bfloat16."""
  arrays = {name: np.asarray(value) for name, value in rows.items()}
  return {
    name: value.astype(np.float32) if value.dtype.kind == "V" else value
    for name, value in arrays.items()
  }
