"""Teacher-forced likelihood: loss, perplexity, and the rows whose every target is the arg max."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from frozen_jax.core.types import ROW_LOSSES, Metrics
from frozen_jax.sharding.batch import ShardBatch
from frozen_jax.sharding.hosts import whole_array

BatchLoss = Callable[[Any], tuple[jax.Array, Metrics]]


class TeacherForced(NamedTuple):
  """Scores over all rows, and the loss of each.

  scores       as `teacher_forced_scores` returns them
  row_losses   nats, the sum over a row's targets; rows in the order of the batches, in which those
               that fill one up count too
  row_targets  how many targets a row has
  """

  scores: dict[str, float]
  row_losses: Float[np.ndarray, " N"]
  row_targets: Int[np.ndarray, " N"]


def teacher_forced(
  loss: BatchLoss, batches: Iterable[Mapping[str, Any]], shard_batch: ShardBatch
) -> TeacherForced:
  """`teacher_forced_scores` of `core.types.Method`s, with what each row has.

  The batches are those of `core.types.Batch`.
  """
  results, targets = [], []
  for batch in batches:
    targets.append(np.asarray(batch["target_mask"]).sum(axis=1))
    results.append(loss(shard_batch(batch)))
  rows = [whole_array(metrics[ROW_LOSSES]).astype(np.float64) for _, metrics in results]
  return TeacherForced(_scores(results), np.concatenate(rows), np.concatenate(targets))


def teacher_forced_scores(
  loss: BatchLoss, batches: Iterable[Mapping[str, Any]], shard_batch: ShardBatch
) -> dict[str, float]:
  """{"loss", "perplexity", "accuracy"} over all batches.

  Args:
    loss: batch -> mean over its targets in nats, and the metrics of `Method.loss`; no dropout.
      `TunedModel.loss`, or `models.tuned_model.batch_loss` with its first arguments given.
    batches: the same on every host.
    shard_batch: puts a batch on the mesh.

  Returns:
    loss: mean negative log-likelihood of the targets, nats; perplexity: its exponential; accuracy:
    percent of rows whose every target is the arg max given the true text before it (teacher-forced
    exact match).
  """
  return _scores([loss(shard_batch(batch)) for batch in batches])


def _scores(results: Iterable[tuple[jax.Array, Metrics]]) -> dict[str, float]:
  """The scores of batches, from what their loss returns."""
  results = list(results)
  losses = np.array([float(value) for value, _ in results], np.float64)
  weights = np.array([int(metrics["targets"]) for _, metrics in results], np.float64)
  rows = sum(int(metrics["rows"]) for _, metrics in results)
  correct = sum(int(metrics["correct"]) for _, metrics in results)
  mean_loss = float((losses * weights).sum() / max(weights.sum(), 1))
  return {
    "loss": mean_loss,
    "perplexity": math.exp(min(mean_loss, 700.0)),
    "accuracy": 100.0 * correct / max(rows, 1),
  }
