"""One stage of a run: its model, its data, its training, and what it hands to later stages."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.paths import num_parameters
from frozen_jax.core.seeds import seed32
from frozen_jax.core.types import Tree
from frozen_jax.data.batch_texts import batch_texts
from frozen_jax.data.batches import TrainingBatches, scoring_batches, training_batches
from frozen_jax.data.encoded_batches import EncodedBatches, TextStates
from frozen_jax.data.sources import Source
from frozen_jax.data.tasks import Task
from frozen_jax.evaluation.teacher_forced import teacher_forced_scores
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.identity import reading_of
from frozen_jax.models.inputs import open_task
from frozen_jax.models.text_states import text_states
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.experiment import StageSettings, TrainedStage
from frozen_jax.run.initial_parts import InitialParts, frozen_inputs, given_parts, started
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import global_device_put, host_shard
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.loop import StageRun, fit
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import learning_rates, make_optimizer
from frozen_jax.training.result import untrained_result

_LOG = logging.getLogger(__name__)


def run_stage(
  stage: StageSettings,
  lm: FrozenLM,
  trained: Mapping[str, TrainedStage],
  initial: InitialParts,
  workdir: AnyPath,
  writer: MetricsWriter,
) -> TrainedStage:
  """Trains one stage, from its checkpoint where there is one.

  trained: the stages before it; initial: of the run's `init_from`. A part starts from the stage
  that `stage.init_from` names if that ran, else from `initial`, else fresh.
  """
  mesh = make_mesh() if lm.mesh is None else lm.mesh
  model = stage.tuned_model(lm)
  stage = stage.with_data(datasets=model.inputs.datasets)
  init_key, key = jax.random.split(stage_key(stage.seed, stage.name))
  given = given_parts(stage, model.method, trained, initial)
  start = started(model.method.init(lm, init_key), given, stage.name)
  inputs = frozen_inputs(stage, model.method, trained, initial)
  model = stage.tuned_model(lm, start, global_device_put(inputs, replicated(mesh)))
  source, task = open_task(lm, stage.data, stage.data.train, stage.prompt.length, model.method)
  rows = _training_batches(stage, source, task, mesh)
  epoch_rows = rows.epoch_rows() if stage.train.epochs else 0
  train = stage.train.for_rows(epoch_rows)
  _log_start(stage, num_parameters(start), train.steps, epoch_rows)
  states = text_states(model)
  batches = rows if states is None else EncodedBatches(rows, states)
  validate, validation_digest = _validator(stage, model, states)
  if not start:
    return TrainedStage(stage, model, untrained_result(start, validate(start)), {})
  dependencies = {
    **stage.dependencies(),
    "train": train,
    "training_data": source.digest,
    "validation_data": validation_digest,
    "init_from": checksum({part: given[part] for part in start if part in given}),
    "frozen_inputs": checksum(inputs),
    **_reading_of(lm, stage, task),
  }
  rates = learning_rates(train, model.method.learning_rates, start)
  optimizer = make_optimizer(train, rates, model.method.no_decay)
  result = fit(
    *(model.method, optimizer, start, model.frozen, batches, train),
    StageRun(
      *(stage.name, workdir, mesh, writer, dependencies),
      fingerprint=lm.fingerprints if stage.reads_encoder else lm.fingerprint,
      source=stage.data.train,
      timeout=stage.data.timeout,
      texts=functools.partial(batch_texts, tokenizer=lm.tokenizer, source=source, task=task),
    ),
    key,
    validate=validate,
    validate_first=True,
  )
  counts = {**batches.counts, "left_out": source.num_without_target}
  return TrainedStage(stage, model.with_trained(result.best), result, counts, epoch_rows)


def _training_batches(
  stage: StageSettings, source: Source, task: Task, mesh: jax.sharding.Mesh
) -> TrainingBatches:
  """The shuffled rows of the stage's training data, of this host's part of each batch."""
  return training_batches(
    *(source, task, stage.train.batch_size, stage.seed, host_shard(mesh), stage.data.mixture),
    leave_out_padding=mesh.size == 1 and stage.train.accumulate == 1,
  )


def _reading_of(lm: FrozenLM, stage: StageSettings, task: Task) -> dict[str, Any]:
  """How the frozen models compute, and what texts and answers become."""
  return {
    **reading_of(lm, stage.data.template, stage.reads_encoder),
    "lengths": list(task.lengths),  # those of the settings, as far as the context holds them
    "answer_end": getattr(task, "end_id", lm.tokenizer.eos_token_id),
  }


def _log_start(stage: StageSettings, parameters: int, steps: int, epoch_rows: int) -> None:
  _LOG.info(
    "stage %s: %s, %s trained parameters, %d steps%s",
    *(stage.name, stage.method, f"{parameters:,}", steps),
    f" ({stage.train.epochs:g} epochs of {epoch_rows} rows)" if epoch_rows else "",
  )


def _validator(
  stage: StageSettings, model: TunedModel, states: TextStates | None
) -> tuple[Callable[[Tree], Mapping[str, float]], str]:
  """A function from a trained tree to its validation figures, and the digest of the data."""
  data, lm = stage.data, model.lm
  source, task = open_task(lm, data, data.validation, stage.prompt.length, model.method)
  rows, examples = stage.evaluate.batch_size, stage.train.validate_examples
  scored = scoring_batches(source, task, min(rows, examples), examples, lm.is_on_one_device)
  batches: list[Any] = list(scored)
  if states is not None:
    batches = [states(batch) for batch in batches]
  validate = lambda tree: teacher_forced_scores(
    model.with_trained(tree).loss, batches, functools.partial(shard_batch, mesh=lm.mesh)
  )
  return validate, source.digest


def stage_key(seed: int, name: str) -> jax.Array:
  """A random key of the stage's own, whatever stages run before it."""
  key = jax.random.key(seed32(seed))
  for byte in name.encode():
    key = jax.random.fold_in(key, byte)
  return key
