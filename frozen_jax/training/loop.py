"""The training loop: one stage from its first step, or from its checkpoint, to its best tree.

The metrics of step t - 1 are read after step t is dispatched, so that logging never stalls the
device. Every metric and every decision depends only on what a checkpoint holds, so a resumed stage
continues bit by bit.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from frozen_jax.config.dependencies import Dependencies
from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import Learner, Tree
from frozen_jax.sharding.hosts import global_batch, host_shard, is_first_host
from frozen_jax.sharding.rules import check_batch_size
from frozen_jax.training.checkpoints import STEPS, Checkpoints, recorded_steps
from frozen_jax.training.health import check_applied
from frozen_jax.training.interruption import Stopped, StopRequest
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import Optimizer
from frozen_jax.training.result import (
  TrainingProgress,
  TrainingResult,
  training_result,
  without_end,
)
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import TrainState, copy_tree, create_state
from frozen_jax.training.step import Step, make_train_step
from frozen_jax.training.timed_batches import Batches, TimedBatches

_LOG = logging.getLogger(__name__)

Validate = Callable[[Tree], Mapping[str, float]]
BEST_BY = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class StageRun:
  """Where a stage is trained and recorded.

  stage         names the metrics and the checkpoint folder
  workdir       holds `checkpoints/`; on several hosts a folder that all of them can read and write
  mesh          rows of a batch are split over it, the state is replicated on every device
  writer        of `metrics.jsonl`
  dependencies  a checkpoint of other ones is refused (`config.dependencies`)
  fingerprint   of the frozen model; likewise
  source        the name of the training data
  timeout       seconds that it may take to give a batch (`TimedBatches`); 0: any
  """

  stage: str
  workdir: str | AnyPath
  mesh: Mesh
  writer: MetricsWriter
  dependencies: Dependencies
  fingerprint: str
  source: str = "the training data"
  timeout: float = 0.0

  def open_checkpoints(self) -> Checkpoints:
    """The checkpoints of the stage."""
    return Checkpoints(
      self.workdir,
      self.stage,
      dependencies=self.dependencies,
      fingerprint=self.fingerprint,
      mesh=self.mesh,
    )


def fit(
  learner: Learner,
  optimizer: Optimizer,
  trained: Tree,
  frozen: Tree,
  batches: Batches,
  settings: TrainSettings,
  run: StageRun,
  key: Key[Array, ""],
  *,
  validate: Validate | None = None,
  validate_first: bool = False,
  best_by: str = "loss",
) -> TrainingResult:
  """Trains one stage, from its checkpoint if there is one; returns at once if it is complete.

  A checkpoint of a stage of another number of steps is trained on where the rates so far do not
  depend on that number: to the same bits as with so many steps at once.

  Every host calls it with the same arguments, but for `batches`: those are its own rows.

  Args:
    learner: gives the loss.
    optimizer: of `make_optimizer`, with the same settings.
    trained: the tree to start from (unchanged: a copy is trained).
    frozen: the learner's frozen argument, on the devices of the mesh.
    batches: training batches without end.
    settings: how long, and what is done on the way; at least one step.
    run: where.
    key: of the stage; drives dropout.
    validate: trained tree -> metrics, among them `loss`; the same on every host.
    validate_first: also validate before the first step, so that the start can be the best.
    best_by: "loss": the lowest is the best; "accuracy": the highest, of equal ones the lower loss.

  Raises:
    Interrupted: SIGTERM or SIGINT was received; the state is saved.
    UserError: a loss that is not finite (`health`), no batch in time, a batch that the mesh does
      not divide, a checkpoint of another run or one that cannot be written.
  """
  _check_arguments(settings, best_by)
  checkpoints = run.open_checkpoints()
  state, best, progress = _resume(
    run, checkpoints, batches, create_state(trained, optimizer, key, run.mesh), settings
  )
  if not progress.complete:
    step = make_train_step(learner, optimizer, settings.accumulate, run.mesh)
    validation = _Validation(validate, validate_first, best_by)
    timed = TimedBatches(batches, run.source, run.timeout)
    loop = _Loop(step, frozen, timed, settings, run, validation, checkpoints, state, best, progress)
    loop.run_steps()
    state, best, progress = loop.state, loop.best, loop.progress
  return training_result(state, best, progress, checkpoints.size())


def _check_arguments(settings: TrainSettings, best_by: str) -> None:
  if settings.steps < 1:
    raise UserError(f"{settings.section}.steps is {settings.steps}; it must be at least 1")
  if best_by not in BEST_BY:
    raise ValueError(f"best_by is {best_by!r}; it is one of {', '.join(BEST_BY)}")


def _resume(
  run: StageRun,
  checkpoints: Checkpoints,
  batches: Batches,
  state: TrainState,
  settings: TrainSettings,
) -> tuple[TrainState, Tree | None, TrainingProgress]:
  """State, best tree and progress of the checkpoint, if there is one, else those of the start.

  Sets the batches to its position, and leaves of metrics.jsonl only the lines up to it: the rest is
  written again.
  """
  best, progress, step = None, TrainingProgress(), -1
  rewritten: set[str] = set()
  restored = checkpoints.restore(state, functools.partial(_is_beginning_of, settings))
  if restored is not None:
    state, best = restored.state, restored.best
    progress = TrainingProgress.from_record(restored.record)
    step = int(state.step)
    batches.set_state(checkpoints.data_position(restored.record))
    if recorded_steps(restored.record) not in (None, settings.steps):
      best = without_end(progress, best, restored.earlier, step, settings.validate_every)
      rewritten |= {"train"} if step > 1 and step % settings.log_every else set()
  if not any(entry["step"] == step for entry in progress.validation):
    rewritten.add("validation")
  run.writer.truncate(run.stage, step, rewritten)
  return state, best, progress


def _is_beginning_of(
  settings: TrainSettings, differing: list[str], record: Mapping[str, Any]
) -> bool:
  """Whether what is saved is what the first steps of a stage with these settings give."""
  step, best = record["step"], record.get("best")
  lost = (
    "earlier" not in record and best and best["step"] == step and step % settings.validate_every
  )
  return differing == [STEPS] and step < settings.steps and settings.same_until(step) and not lost


class _Validation(NamedTuple):
  """How the trained tree is validated; see `fit`."""

  metrics_of: Validate | None
  before_first_step: bool
  best_by: str

  def is_better(
    self, metrics: Mapping[str, float | None], best: Mapping[str, float | None] | None
  ) -> bool:
    """Whether a validation is better than the best so far; one whose loss is no number never is."""
    if metrics["loss"] is None or best is None:
      return metrics["loss"] is not None
    by_accuracy = self.best_by == "accuracy"
    rank = lambda one: (one["accuracy"] if by_accuracy else 0.0, -one["loss"])
    return rank(metrics) > rank(best)


@dataclasses.dataclass
class _Loop:
  """The loop's variables, and the steps that change them."""

  train_step: Step
  frozen: Tree
  batches: Batches
  settings: TrainSettings
  run: StageRun
  validation: _Validation
  checkpoints: Checkpoints
  state: TrainState
  best: Tree | None
  progress: TrainingProgress

  def __post_init__(self) -> None:
    self._stop = StopRequest()
    self._compiled: set[Any] = set()  # the batch shapes that the step has been compiled for
    self._pending: tuple[int, bool, Mapping[str, jax.Array], Mapping[str, np.ndarray]] | None = None
    self._timing_since: float | None = None  # when the span of timed steps began
    self._last_save = time.monotonic()
    self._size_logged = False
    self._earlier: Tree | None = (
      None  # the best tree before the last validation, see `TrainingProgress`
    )
    self._bar = ProgressBar(disable=True)

  def run_steps(self) -> None:
    """Trains from the state's step until the stage is complete."""
    settings, first, stage = self.settings, int(self.state.step), self.run.stage
    if first:
      _LOG.info("stage %s resumes from step %d", stage, first)
    self._bar = ProgressBar(
      total=settings.steps,
      initial=first,
      desc=stage,
      unit="step",
      smoothing=0,  # the mean rate
      disable=not is_first_host(),
    )
    with self._stop, self._bar:
      # --- what an interruption left undone
      if self._is_validation_due(first):
        self._validate(first)
      complete = self._is_complete(first)
      if complete:
        self._save()
      # --- the steps
      for step in range(first + 1, settings.steps + 1):
        if complete:
          break
        self._dispatch(step)
        stopping = self._stop.reached()
        validating = self._is_validation_due(step)
        saving = step % settings.checkpoint_every == 0
        if not (stopping or validating or saving or step == settings.steps):
          continue
        # --- metrics first, then the checkpoint: what it records as done must have been written
        self._flush()
        if validating and not stopping:
          self._validate(step)
        complete = self._is_complete(step)
        if complete or stopping or saving:
          self._save()
        if stopping:
          raise Interrupted(step)
      self._bar.refresh()
    if self._stop.noted:
      raise Interrupted(int(self.state.step))

  def _dispatch(self, step: int) -> None:
    """Sends step t to the device, then reads the metrics of step t - 1."""
    rows, mesh = next(self.batches), self.run.mesh
    size = rows["tokens"].shape[0] * host_shard(mesh)[1]
    check_batch_size(size, mesh, self.settings.accumulate, f"{self.settings.section}.batch_size")
    shapes = tuple((name, value.shape) for name, value in sorted(rows.items()))
    compiles = shapes not in self._compiled
    if compiles:
      self._flush()
      self._compiled.add(shapes)
      self._bar.compiling()
    elif self._timing_since is None:
      self._timing_since = time.monotonic()
    batch = global_batch(rows, mesh)
    self.state, metrics = self.train_step(self.state, self.frozen, batch)
    self._read_pending()
    self._pending = (step, not compiles, metrics, rows)
    if compiles:
      self._flush()

  def _flush(self) -> None:
    """Reads what is pending and ends the span of timed steps."""
    self._read_pending()
    if self._timing_since is not None:
      self.progress.timed_seconds += time.monotonic() - self._timing_since
      self._timing_since = None

  def _read_pending(self) -> None:
    if self._pending is None:
      return
    step, timed, on_device, rows = self._pending
    self._pending = None
    values = {name: value.item() for name, value in jax.device_get(dict(on_device)).items()}
    metrics = {"loss": values.pop("loss"), **values}
    check_applied(step, metrics, rows, self.settings, self.checkpoints, self.progress)
    if not metrics["skipped"]:
      del metrics["skipped"]
    self.progress.tokens += int(metrics["tokens"])
    self.progress.timed_tokens += int(metrics["tokens"]) if timed else 0
    self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
    self._bar.advance(timed)
    if step % self.settings.log_every == 0 or step in (1, self.settings.steps):
      self.run.writer.write(self.run.stage, step, "train", **metrics)

  def _is_validation_due(self, step: int) -> bool:
    """Whether this step has a validation that has not been done yet."""
    settings, done = self.settings, self.progress.validation
    if self.validation.metrics_of is None or (done and done[-1]["step"] == step):
      return False
    if step == 0:
      return self.validation.before_first_step
    return step == settings.steps or step % settings.validate_every == 0

  def _validate(self, step: int) -> None:
    """Validates the trained tree and keeps a copy if it is the best so far."""
    assert self.validation.metrics_of is not None
    tree, metrics_of = self.state.trainable, self.validation.metrics_of
    try:
      with self._bar.doing("validating"):
        metrics = self._stop.run_droppable(lambda: metrics_of(tree))
    except Stopped:
      self._save()
      raise Interrupted(step) from None
    metrics = {name: _finite(value) for name, value in metrics.items()}
    self.run.writer.write(self.run.stage, step, "validation", **metrics)
    entry = {"step": step, **metrics}
    self.progress.validation.append(entry)
    if self.validation.is_better(entry, self.progress.best):
      if step % self.settings.validate_every:  # only because it is the last
        self.progress.earlier, self._earlier = self.progress.best, self.best
      self.progress.best, self.best = entry, copy_tree(tree, self.run.mesh)

  def _is_complete(self, step: int) -> bool:
    """Whether the stage is complete after this step and its validation; noted in the progress."""
    settings, progress = self.settings, self.progress
    validated = [entry["step"] for entry in progress.validation]
    best = -1 if progress.best is None else validated.index(progress.best["step"])
    out_of_patience = 0 < settings.patience <= len(validated) - 1 - best
    progress.complete = not self._is_validation_due(step) and (
      step == settings.steps or out_of_patience
    )
    return progress.complete

  def _save(self) -> None:
    """Writes the checkpoint of the current step."""
    now = time.monotonic()
    self.progress.seconds += now - self._last_save
    self._last_save = now
    record = dataclasses.asdict(self.progress)
    self.run.writer.flush()
    position = self.batches.get_state()
    size = self.checkpoints.save(self.state, self.best, record, position, self._earlier)
    if not self._size_logged:
      _LOG.info("a checkpoint of stage %s takes %s", self.run.stage, _readable_size(size))
    self._size_logged = True


def _readable_size(count: int) -> str:
  return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _finite(value: Any) -> float | None:
  """A metric as JSON can hold it: None for what is not finite."""
  value = float(value)
  return value if math.isfinite(value) else None
