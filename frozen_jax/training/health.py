"""What is done about an update that the step has not applied: its loss is no number, or explodes.

`step.make_train_step` decides that on the device. Here the batch is saved, and the stage stops, or
goes on without the update, or goes back to a checkpoint.
"""

import dataclasses
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_bytes, write_lines
from frozen_jax.core.object_store import any_path
from frozen_jax.training.checkpoints import Checkpoints
from frozen_jax.training.result import TrainingProgress
from frozen_jax.training.settings import TrainSettings

_LOG = logging.getLogger(__name__)
_REMEDY = (
  "try a lower learning rate, more warm-up steps, clipping of gradients or model.dtype=float32"
)

# What the rows of a batch are, for people: ids and texts of each.
Texts = Callable[[Mapping[str, np.ndarray]], Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Health:
  """What becomes of the updates of a stage that are not applied, by its settings."""

  settings: TrainSettings
  checkpoints: Checkpoints
  texts: Texts | None = None

  def goes_back(
    self,
    step: int,
    metrics: Mapping[str, float],
    rows: Mapping[str, np.ndarray],
    progress: TrainingProgress,
    to: int,
  ) -> bool:
    """Whether the stage goes back to the checkpoint of step `to`; noted in the progress.

    metrics: of the step; `skipped` says whether its update was not applied. rows: this host's, of
    the step: they are saved, but for those after the first in a row that is skipped.

    Raises:
      UserError: it was not, and the settings say to stop.
    """
    if not metrics["skipped"]:
      progress.skipped_in_a_row = 0
      return False
    settings, name = self.settings, self.checkpoints.folder.name
    what = f"{_fault(metrics, settings)} at step {step} of stage {name}"
    back, why = len(progress.rolled_back), ""
    if settings.on_nonfinite == "rollback":
      saved = self._saved(step, metrics, rows, f"-{back}" if back else "")
      if back < settings.max_rollbacks:
        progress.rolled_back.append({"from": step, "to": to})
        number = f"{back + 1} of {settings.max_rollbacks}"
        _LOG.warning("%s: back to step %d, roll-back %s; %s", what, to, number, saved)
        return True
      why = f", after {back} roll-backs ({settings.section}.max_rollbacks)"
    else:
      progress.skipped += 1
      progress.skipped_in_a_row += 1
      in_a_row, skips = progress.skipped_in_a_row, settings.on_nonfinite == "skip"
      stops = not skips or in_a_row >= settings.max_skipped
      saved = self._saved(step, metrics, rows) if stops or in_a_row == 1 else ""
      if not stops:
        _LOG.warning("%s: its update is not applied%s", what, saved and f"; {saved}")
        return False
      if skips:
        why = f", and so were {in_a_row} in a row ({settings.section}.max_skipped)"
    latest = self.checkpoints.latest()
    kept = "no checkpoint had been saved" if latest is None else f"step {latest} is saved"
    other = "" if why else f", or {settings.section}.on_nonfinite=skip or rollback"
    raise UserError(f"{what}{why} ({kept}; {saved}); {_REMEDY}{other}")

  def _saved(
    self,
    step: int,
    metrics: Mapping[str, float],
    rows: Mapping[str, np.ndarray],
    number: str = "",
  ) -> str:
    """Writes this host's rows to the workdir; says where they are, or why not."""
    own = f"_process{jax.process_index()}" if jax.process_count() > 1 else ""
    name = f"bad_batch_{self.checkpoints.folder.name}_{step}{number}{own}"
    folder = any_path(self.checkpoints.workdir)
    figures = {name: np.asarray(metrics[name]) for name in ("loss", "grad_norm")}
    data = io.BytesIO()
    np.savez_compressed(data, step=np.int64(step), **figures, **_plain(rows))
    said = f"its batch is in {folder / f'{name}.npz'}"
    try:
      write_bytes(folder / f"{name}.npz", data.getvalue())
      if self.texts is not None:
        write_lines(folder / f"{name}.jsonl", self.texts(rows))
        said += f", its texts in {name}.jsonl"
    except UserError as error:
      return f"its batch is lost: {error}"
    return said


def _fault(metrics: Mapping[str, float], settings: TrainSettings) -> str:
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      return f"the {name} is {metrics[name]}"
  limit = f"{settings.section}.max_loss={settings.max_loss:g}"
  return f"the loss is {metrics['loss']:g}, above {limit},"


def _plain(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays in types that numpy reads by itself, without bfloat16."""
  arrays = {name: np.asarray(value) for name, value in rows.items()}
  return {
    name: value.astype(np.float32) if value.dtype.kind == "V" else value
    for name, value in arrays.items()
  }
