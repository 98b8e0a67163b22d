"""Teacher-forced likelihood: loss, perplexity, and the rows whose every target is the arg max."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from frozen_jax.core.types import Metrics
from frozen_jax.sharding.batch import ShardBatch

BatchLoss = Callable[[Any], tuple[jax.Array, Metrics]]


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
  results = [loss(shard_batch(batch)) for batch in batches]
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
