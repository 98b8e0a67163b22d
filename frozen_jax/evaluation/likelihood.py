"""Teacher-forced scores: loss, perplexity and the share of rows whose every target is the arg max."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from frozen_jax.core.types import Batch, Method, Tree

Place = Callable[[Mapping[str, Any]], Mapping[str, jax.Array]]


def make_scorer(method: Method, place: Place) -> Callable[[Tree, Tree, Iterable[Batch]], dict]:
  """A function `(trainable, frozen, batches) -> {"loss", "perplexity", "accuracy"}`.

  loss: mean negative log-likelihood of the targets over all batches, nats; perplexity: its
  exponential; accuracy: percent of rows whose every target is the arg max given the true text
  before it (teacher-forced exact match). Dropout is off. `place` puts a batch on the mesh.
  """
  batch_loss = jax.jit(lambda trainable, frozen, batch: method.loss(trainable, frozen, batch, None))

  def score(trainable: Tree, frozen: Tree, batches: Iterable[Batch]) -> dict[str, float]:
    outcomes = [batch_loss(trainable, frozen, place(batch)) for batch in batches]
    losses = np.array([float(loss) for loss, _ in outcomes], np.float64)
    weights = np.array([int(metrics["targets"]) for _, metrics in outcomes], np.float64)
    rows = sum(int(metrics["rows"]) for _, metrics in outcomes)
    correct = sum(int(metrics["correct"]) for _, metrics in outcomes)
    loss = float((losses * weights).sum() / max(weights.sum(), 1))
    return {
      "loss": loss,
      "perplexity": math.exp(min(loss, 700.0)),
      "accuracy": 100.0 * correct / max(rows, 1),
    }

  return score
