"""The training loop: one stage from its first step, or from its checkpoint, to its best tree.

The metrics of step t - 1 are read after step t is dispatched, so that logging never stalls the
device. Every metric and every decision depends only on what a checkpoint holds, so a resumed stage
continues bit by bit.
"""

import collections
import dataclasses
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
from frozen_jax.core.types import ROW_INDEX, Learner, Tree
from frozen_jax.sharding.hosts import global_batch, host_shard, is_first_host
from frozen_jax.sharding.rules import check_batch_size
from frozen_jax.training.checkpoints import Checkpoints
from frozen_jax.training.health import Health, Texts
from frozen_jax.training.interruption import Stopped, StopRequest
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import Optimizer
from frozen_jax.training.result import TrainingProgress, TrainingResult, training_result
from frozen_jax.training.resume import resume, roll_back
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
  texts         what a row of a batch is, for people (`health.Texts`)
  """

  stage: str
  workdir: str | AnyPath
  mesh: Mesh
  writer: MetricsWriter
  dependencies: Dependencies
  fingerprint: str
  source: str = "the training data"
  timeout: float = 0.0
  texts: Texts | None = None

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
  start = create_state(trained, optimizer, key, run.mesh)
  state, best, progress = resume(checkpoints, run.writer, batches, start, settings)
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


class _RollBack(Exception):
  """Raised where an update is found not to be one, and the stage is to go back."""


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
    self._stopping = False
    self._health = Health(self.settings, self.checkpoints, self.run.texts)
    # --- batches that were taken and whose metrics are not read yet, and that are taken again
    self._taken: collections.deque[Mapping[str, np.ndarray]] = collections.deque()
    self._again: collections.deque[Mapping[str, np.ndarray]] = collections.deque()
    self._compiled: set[Any] = set()  # the batch shapes that the step has been compiled for
    self._pending: tuple[int, bool, Mapping[str, jax.Array]] | None = None
    self._timing_since: float | None = None  # when the span of timed steps began
    self._last_save = time.monotonic()
    self._size_logged = False
    self._back_to = 0  # the step of the checkpoint that the stage would go back to
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
      step, complete = first, self._begin(first)
      while not complete and step < settings.steps:
        try:
          complete = self._take(step + 1)
          step += 1
        except _RollBack:
          step = self._roll_back()
      self._bar.refresh()
    if self._stop.noted:
      raise Interrupted(int(self.state.step))

  def _begin(self, step: int) -> bool:
    """Does what an interruption left undone; whether the stage is complete."""
    saved = self.checkpoints.steps()
    planned = [one for one in saved if one % self.settings.checkpoint_every == 0]
    self._back_to = max(planned or saved or [step])
    due = self._is_validation_due(step)
    if due:
      self._validate(step)
    complete = self._is_complete(step)
    # There must be a checkpoint to go back to, and what it holds must be whole.
    if complete or (self._rolls_back and (due or not saved)):
      self._save()
    return complete

  def _take(self, step: int) -> bool:
    """One step, with the validation and the checkpoint after it; whether the stage is complete."""
    self._dispatch(step)
    self._stopping = self._stop.reached() or self._stopping
    stopping, validating = self._stopping, self._is_validation_due(step)
    saving = step % self.settings.checkpoint_every == 0
    if not (stopping or validating or saving or step == self.settings.steps):
      return False
    # --- metrics first, then the checkpoint: what it records as done must have been written
    self._flush()
    if validating and not stopping:
      self._validate(step)
    complete = self._is_complete(step)
    if complete or stopping or saving:
      self._save()
    if stopping:
      raise Interrupted(step)
    return complete

  @property
  def _rolls_back(self) -> bool:
    return self.settings.on_nonfinite == "rollback"

  def _roll_back(self) -> int:
    """Goes back to the last planned checkpoint, with the batches after the bad one; its step.

    A checkpoint of a stop is passed over, and nothing is saved before the next step: so it goes on
    alike whether it was stopped, killed or neither.
    """
    self._again.extend(self._taken)
    self._taken.clear()
    self._pending = self._timing_since = None
    before = self.progress
    self.state, self.best, self.progress = roll_back(
      self.checkpoints, self.run.writer, self.state, self.settings, self._back_to
    )
    self.progress.rolled_back, self.progress.seconds = before.rolled_back, before.seconds
    self._bar.back_to(self._back_to)
    return self._back_to

  def _dispatch(self, step: int) -> None:
    """Sends step t to the device, then reads the metrics of step t - 1."""
    rows, mesh = self._again.popleft() if self._again else next(self.batches), self.run.mesh
    self._taken.append(rows)
    rows = {name: value for name, value in rows.items() if name != ROW_INDEX}
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
    self._pending = (step, not compiles, metrics)
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
    step, timed, on_device = self._pending
    self._pending, rows = None, self._taken.popleft()
    values = {name: value.item() for name, value in jax.device_get(dict(on_device)).items()}
    metrics = {"loss": values.pop("loss"), **values}
    if self._health.goes_back(step, metrics, rows, self.progress, self._back_to):
      raise _RollBack
    if not metrics["skipped"]:
      del metrics["skipped"]
    self.progress.tokens += int(metrics["tokens"])
    self.progress.timed_tokens += int(metrics["tokens"]) if timed else 0
    self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
    self._bar.advance(timed)
    back = next((one for one in self.progress.rolled_back[-1:] if one["to"] == step - 1), None)
    if back is not None:
      metrics["rolled_back_from"] = back["from"]
    if back or step % self.settings.log_every == 0 or step in (1, self.settings.steps):
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
    if (step := int(self.state.step)) % self.settings.checkpoint_every == 0:
      self._back_to = step
    kept = self._back_to if self._rolls_back else None
    size = self.checkpoints.save(self.state, self.best, record, position, self._earlier, kept)
    if not self._size_logged:
      _LOG.info("a checkpoint of stage %s takes %s", self.run.stage, _readable_size(size))
    self._size_logged = True


def _readable_size(count: int) -> str:
  return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _finite(value: Any) -> float | None:
  """A metric as JSON can hold it: None for what is not finite."""
  value = float(value)
  return value if math.isfinite(value) else None
