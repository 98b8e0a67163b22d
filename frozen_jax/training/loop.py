"""The training loop: one stage from its first step, or from its checkpoint, to its best tree.

One step behind: step t is dispatched before the figures of step t - 1 are read, so that logging
never stalls the device. Every figure and every decision depends only on what a checkpoint holds,
so a resumed stage goes on bit by bit.
"""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.core.types import Learner, Tree
from frozen_jax.sharding.hosts import global_batch, host_shard, is_first_host
from frozen_jax.sharding.rules import check_batch_size
from frozen_jax.training.checkpoints import Checkpoints
from frozen_jax.training.interruption import Stopped, StopRequest
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import Optimizer
from frozen_jax.training.state import TrainState, copy_tree, create_state
from frozen_jax.training.step import Step, make_train_step

_LOG = logging.getLogger(__name__)

Validate = Callable[[Tree], Mapping[str, float]]


class Batches(Protocol):
  """An endless iterator of this host's rows, whose position can be taken and set."""

  def __next__(self) -> Mapping[str, np.ndarray]: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """How long a stage trains and what it does on the way; a period of 0: only at the end.

  steps             updates of the stage
  accumulate        microbatches per update
  log_every         steps between lines in metrics.jsonl (the first and last step always have one)
  validate_every    steps between validations; the last step always has one
  checkpoint_every  steps between checkpoints; the last step always has one
  patience          validations in a row without a better one after which the stage ends; 0: none
  validate_first    also validate before the first step, so that the start can be the best
  best_by           loss: the lowest is the best; or accuracy: the highest, of equals the lower loss
  """

  steps: int
  accumulate: int = 1
  log_every: int = 10
  validate_every: int = 0
  checkpoint_every: int = 0
  patience: int = 0
  validate_first: bool = False
  best_by: str = "loss"

  def __post_init__(self) -> None:
    for name in ("steps", "accumulate", "log_every"):
      if getattr(self, name) < 1:
        raise UserError(f"{name} is {getattr(self, name)}; give a whole number of 1 or more")
    for name in ("validate_every", "checkpoint_every", "patience"):
      if getattr(self, name) < 0:
        raise UserError(f"{name} is {getattr(self, name)}; give a whole number of 0 or more")
    if self.best_by not in ("loss", "accuracy"):
      raise UserError(f"best_by is {self.best_by!r}; choose loss or accuracy")


@dataclasses.dataclass(frozen=True)
class Fit:
  """What a stage has come to.

  best               the trained tree that validated best; the last without validation
  last               the trained tree after the last step
  best_step          the step of `best`
  best_figures       its validation figures; empty without validation
  steps              steps done (fewer than asked for when patience ran out)
  seconds            spent on the stage, with validation and checkpoints, over all resumes
  tokens             real text tokens trained on
  tokens_per_second  of them, over the training steps that compiled nothing
  validation         `{"step": ..., figures}` of each validation
  checkpoint_bytes   size of the checkpoint on disk
  """

  best: Tree
  last: Tree
  best_step: int
  best_figures: dict[str, float | None]
  steps: int
  seconds: float
  tokens: int
  tokens_per_second: float
  validation: list[dict[str, float | None]]
  checkpoint_bytes: int


@dataclasses.dataclass
class _Record:
  """What a checkpoint remembers beside arrays and the data position."""

  complete: bool = False
  seconds: float = 0.0
  tokens: int = 0
  timed_seconds: float = 0.0
  timed_tokens: int = 0
  best: dict[str, float | None] | None = None
  validation: list[dict[str, float | None]] = dataclasses.field(default_factory=list)

  @classmethod
  def read(cls, saved: Mapping[str, Any]) -> "_Record":
    return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})


def fit(
  method: Learner,
  optimizer: Optimizer,
  trainable: Tree,
  frozen: Tree,
  batches: Batches,
  *,
  stage: str,
  options: FitOptions,
  key: jax.Array,
  mesh: Mesh,
  workdir: str | os.PathLike[str],
  writer: MetricsWriter,
  config: Mapping[str, Any],
  fingerprint: str,
  validate: Validate | None = None,
) -> Fit:
  """Trains one stage; goes on from its checkpoint if there is one, returns at once if complete.

  Every host calls it with the same arguments, but for `batches`: those are its own rows.

  Args:
    method: gives the loss.
    optimizer: of `make_optimizer`, for `options.steps` updates.
    trainable: where the stage starts (kept: a copy is trained).
    frozen: the method's frozen argument, on the devices of `mesh`.
    batches: training batches without end.
    stage: names the metrics and the checkpoint folder.
    options: see `FitOptions`.
    key: of the stage; drives dropout.
    mesh: rows of a batch are split over it, the state is whole on every device.
    workdir: holds `checkpoints/`; on several hosts a folder that all of them see.
    writer: of `metrics.jsonl`.
    config: JSON; a checkpoint of another one is refused.
    fingerprint: of the frozen model; likewise.
    validate: trained tree -> figures, among them `loss`; the same on every host.

  Raises:
    Interrupted: SIGTERM came; the state is saved.
    UserError: a loss that is not finite, a batch that the mesh does not divide, a checkpoint of
      another run or one that cannot be written.
  """
  checkpoints = Checkpoints(workdir, stage, config=config, fingerprint=fingerprint, mesh=mesh)
  state, best, record = create_state(trainable, optimizer, key, mesh), None, _Record()
  restored = checkpoints.restore(state)
  if restored is not None:
    state, best, record = restored.state, restored.best, _Record.read(restored.record)
    batches.set_state(checkpoints.data_position(restored.record))
  _truncate(writer, stage, -1 if restored is None else int(state.step), record)
  if not record.complete:
    step = make_train_step(method, optimizer, options.accumulate, mesh)
    loop = _Loop(
      step,
      frozen,
      batches,
      validate,
      options,
      stage,
      mesh,
      writer,
      checkpoints,
      state,
      best,
      record,
    )
    loop.run()
    state, best, record = loop.state, loop.best, loop.record
  return _result(state, best, record, checkpoints.size())


def _truncate(writer: MetricsWriter, stage: str, step: int, record: _Record) -> None:
  """Leaves the lines that the checkpoint of this step answers for: the rest is done again."""
  validated = any(entry["step"] == step for entry in record.validation)
  writer.truncate(stage, step, again=() if validated else ("validation",))


def _result(state: TrainState, best: Tree | None, record: _Record, size: int) -> Fit:
  figures = dict(record.best or {})
  best_step = int(figures.pop("step", None) or 0) if record.best else int(state.step)
  timed = record.timed_seconds > 0
  return Fit(
    best=state.trainable if best is None else best,
    last=state.trainable,
    best_step=best_step,
    best_figures=figures,
    steps=int(state.step),
    seconds=record.seconds,
    tokens=record.tokens,
    tokens_per_second=(
      record.timed_tokens / record.timed_seconds
      if timed
      else record.tokens / max(record.seconds, 1e-9)
    ),
    validation=record.validation,
    checkpoint_bytes=size,
  )


@dataclasses.dataclass
class _Loop:
  """The loop's variables, and the steps between which it moves them."""

  train_step: Step
  frozen: Tree
  batches: Batches
  validate_tree: Validate | None
  options: FitOptions
  stage: str
  mesh: Mesh
  writer: MetricsWriter
  checkpoints: Checkpoints
  state: TrainState
  best: Tree | None
  record: _Record

  def __post_init__(self) -> None:
    self._stop = StopRequest()
    self._compiled: set[Any] = set()  # the batch shapes that the step has been compiled for
    self._pending: tuple[int, bool, Mapping[str, jax.Array]] | None = None
    self._clock: float | None = None  # when the span of timed steps began
    self._begun = time.monotonic()
    self._saved = False
    self._bar: tqdm = tqdm(disable=True)

  def run(self) -> None:
    """Trains from the state's step until the stage is complete."""
    options, first = self.options, int(self.state.step)
    if first:
      _LOG.info("stage %s goes on from step %d", self.stage, first)
    self._bar = tqdm(
      total=options.steps, initial=first, desc=self.stage, unit="step", disable=not is_first_host()
    )
    with self._stop, self._bar:
      # --- what an interruption left undone
      if self._is_validation_due(first):
        self._validate(first)
      done = self._is_done(first)
      if done:
        self._save()
      # --- the steps
      for step in range(first + 1, options.steps + 1):
        if done:
          break
        self._dispatch(step)
        stopping = self._stop.reached()
        validating = self._is_validation_due(step)
        last = step == options.steps
        if not (stopping or validating or last or _due(step, options.checkpoint_every)):
          continue
        # --- figures first, then the checkpoint: what it says is done must have been written
        self._flush()
        if validating and not stopping:
          self._validate(step)
        done = self._is_done(step)
        if done or stopping or _due(step, options.checkpoint_every):
          self._save()
        if stopping:
          raise Interrupted(step)
    if self._stop.noted:
      raise Interrupted(int(self.state.step))

  def _dispatch(self, step: int) -> None:
    """Sends step t to the device, then reads the figures of step t - 1."""
    rows = next(self.batches)
    size = rows["tokens"].shape[0] * host_shard(self.mesh)[1]
    check_batch_size(size, self.mesh, self.options.accumulate, "train.batch_size")
    shapes = tuple((name, value.shape) for name, value in sorted(rows.items()))
    compiles = shapes not in self._compiled
    if compiles:
      self._flush()
      self._compiled.add(shapes)
    elif self._clock is None:
      self._clock = time.monotonic()
    batch = global_batch(rows, self.mesh)
    self.state, metrics = self.train_step(self.state, self.frozen, batch)
    self._read_pending()
    self._pending = (step, not compiles, metrics)
    if compiles:
      self._flush()

  def _flush(self) -> None:
    """Reads what is pending and ends the span of timed steps."""
    self._read_pending()
    if self._clock is not None:
      self.record.timed_seconds += time.monotonic() - self._clock
      self._clock = None

  def _read_pending(self) -> None:
    if self._pending is None:
      return
    step, timed, on_device = self._pending
    self._pending = None
    found = {name: value.item() for name, value in jax.device_get(dict(on_device)).items()}
    figures = {"loss": found.pop("loss"), **found}
    self._check_finite(step, figures)
    self.record.tokens += int(figures["tokens"])
    self.record.timed_tokens += int(figures["tokens"]) if timed else 0
    self._bar.set_postfix_str(f"loss {figures['loss']:.4f}", refresh=False)
    self._bar.update(1)
    options = self.options
    if _due(step, options.log_every) or step in (1, options.steps):
      self.writer.write(self.stage, step, "train", **figures)

  def _check_finite(self, step: int, figures: Mapping[str, float]) -> None:
    wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(figures[name])]
    if not wrong:
      return
    kept = self.checkpoints.latest()
    stands = "no checkpoint had been saved" if kept is None else f"step {kept} is saved"
    raise UserError(
      f"the {wrong[0]} is {figures[wrong[0]]} at step {step} of stage {self.stage} ({stands}); "
      "try a lower learning rate, more warm-up steps, clipping of gradients or model.dtype=float32"
    )

  def _is_validation_due(self, step: int) -> bool:
    """Whether this step has a validation that has not been done yet."""
    options, done = self.options, self.record.validation
    if self.validate_tree is None or (done and done[-1]["step"] == step):
      return False
    if step == 0:
      return options.validate_first
    return step == options.steps or _due(step, options.validate_every)

  def _validate(self, step: int) -> None:
    """Validates the trained tree and keeps a copy if it is the best so far."""
    assert self.validate_tree is not None
    tree, validate = self.state.trainable, self.validate_tree
    try:
      found = self._stop.drop_when_asked(lambda: validate(tree))
    except Stopped:
      self._save()
      raise Interrupted(step) from None
    figures = {name: _number(value) for name, value in found.items()}
    self.writer.write(self.stage, step, "validation", **figures)
    entry = {"step": step, **figures}
    self.record.validation.append(entry)
    if self._is_better(entry):
      self.record.best, self.best = entry, copy_tree(tree, self.mesh)

  def _is_better(self, found: Mapping[str, float | None]) -> bool:
    """Whether a validation is better than the best so far; one whose loss is no number never is."""
    best, by_accuracy = self.record.best, self.options.best_by == "accuracy"
    if found["loss"] is None or best is None:
      return found["loss"] is not None
    rank = lambda figures: (figures["accuracy"] if by_accuracy else 0.0, -figures["loss"])
    return rank(found) > rank(best)

  def _is_done(self, step: int) -> bool:
    """Whether the stage is complete behind this step, with its validation; noted in the record."""
    options, record = self.options, self.record
    since = [entry["step"] for entry in record.validation]
    best = -1 if record.best is None else since.index(record.best["step"])
    out_of_patience = 0 < options.patience <= len(since) - 1 - best
    record.complete = not self._is_validation_due(step) and (
      step == options.steps or out_of_patience
    )
    return record.complete

  def _save(self) -> None:
    """Writes the checkpoint of the current step."""
    now = time.monotonic()
    self.record.seconds += now - self._begun
    self._begun = now
    record = dataclasses.asdict(self.record)
    size = self.checkpoints.save(self.state, self.best, record, self.batches.get_state())
    if not self._saved:
      _LOG.info("a checkpoint of stage %s takes %s", self.stage, _bytes(size))
    self._saved = True


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _bytes(size: int) -> str:
  return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _number(value: Any) -> float | None:
  """A figure as JSON can hold it."""
  value = float(value)
  return value if math.isfinite(value) else None
