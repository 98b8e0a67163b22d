"""`metrics.jsonl`: one JSON object a line, each step once, also after a resume.

A line holds `stage`, `step`, `split` and then metrics. Numbers are written in full precision: the
float32 of the device as a Python float, so equal lines mean equal bits. Only the first host
writes.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from frozen_jax.core.errors import StoreError, UserError
from frozen_jax.core.files import user_write_errors
from frozen_jax.core.json_row import without_nan
from frozen_jax.core.line_file import LineFile
from frozen_jax.core.object_store import AnyPath, any_path
from frozen_jax.sharding.hosts import is_first_host

METRICS = "metrics.jsonl"


class MetricsWriter:
  """Appends to `workdir/metrics.jsonl`, and to TensorBoard event files if requested."""

  def __init__(self, workdir: str | AnyPath, tensorboard: bool = False):
    """Opens (and creates) the workdir; `tensorboard` needs the extra of that name.

    Raises:
      UserError: the folder cannot be created, or `tensorboard` is set and tensorboardX is not
        installed.
    """
    folder = any_path(workdir)
    self.path = folder / METRICS
    self._is_first_host = is_first_host()
    self._lines = LineFile(self.path)
    self._tensorboard: Any = None
    if not self._is_first_host:
      return
    if isinstance(folder, pathlib.Path):
      with user_write_errors(self.path):
        folder.mkdir(parents=True, exist_ok=True)
    elif tensorboard:
      raise UserError(f"TensorBoard cannot write to {folder}; leave --config.tensorboard out")
    if tensorboard:
      self._tensorboard = _tensorboard(folder / "tensorboard")

  def write(self, stage: str, step: int, split: str, **metrics: Any) -> None:
    """One line; a value that is not finite becomes null, arrays of size 1 numbers.

    On a disk it is there at once, on an object store with the next upload (`LineFile`).

    Raises:
      UserError: the disk refuses; what it took of the line is dropped by the next `truncate`.
    """
    if not self._is_first_host:
      return
    line = {"stage": stage, "step": int(step), "split": split}
    line |= {name: _json_value(value) for name, value in metrics.items()}
    self._lines.append(json.dumps(line, allow_nan=False) + "\n")
    if self._tensorboard is not None:
      for name, value in metrics.items():
        if isinstance(value := _json_value(value), int | float):
          self._tensorboard.add_scalar(f"{stage}/{split}/{name}", value, int(step))

  def truncate(self, stage: str, step: int, rewritten: Iterable[str] = ()) -> None:
    """Drops what a resumed stage will write again, atomically.

    That is: its lines after `step`, its lines at `step` of the splits in `rewritten`, and an
    incomplete last line. A `step` of -1 drops the whole stage.
    """
    if not self._is_first_host:
      return
    rewritten, text, lines = set(rewritten), self._lines.read(), []
    for line in text.splitlines():
      entry = _parse(line)
      if entry is None:
        continue
      later = entry.get("step", 0) > step
      redone = entry.get("step") == step and entry.get("split") in rewritten
      if entry.get("stage") != stage or not (later or redone):
        lines.append(line + "\n")
    if "".join(lines) == text:
      return
    self._lines.replace("".join(lines))

  def flush(self) -> None:
    """Uploads what a store does not have yet: before a checkpoint says that it is done."""
    self._lines.flush()

  def close(self) -> None:
    """Flushes, and closes TensorBoard's file, if there is one."""
    self.flush()
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    if not isinstance(error, StoreError):  # a store that fails is not tried once more
      self.close()


def read_metrics(workdir: str | AnyPath) -> list[dict[str, Any]]:
  """All complete lines of a workdir's `metrics.jsonl`, in order; empty when there is none."""
  text = LineFile(any_path(workdir) / METRICS).read()
  entries = (_parse(line) for line in text.splitlines())
  return [entry for entry in entries if entry is not None]


def _parse(line: str) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except json.JSONDecodeError:
    return None
  return entry if isinstance(entry, dict) else None


def _json_value(value: Any) -> Any:
  return without_nan(value.item() if hasattr(value, "item") else value)


def _tensorboard(folder: AnyPath) -> Any:
  try:
    import tensorboardX
  except ImportError as error:
    raise UserError(
      "TensorBoard output needs tensorboardX; run pip install 'frozen_jax[tensorboard]' or switch "
      "it off"
    ) from error
  return tensorboardX.SummaryWriter(str(folder))
