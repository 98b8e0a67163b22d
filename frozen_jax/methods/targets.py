"""The end of every method's loss: the likelihood of the targets, and the metrics' sums."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder import logits
from frozen_jax.backbones.joined_rows import joined_rows
from frozen_jax.backbones.loss import target_log_likelihood
from frozen_jax.core.types import ROW_LOSSES, Batch, Metrics, Tree


def loss_at_targets(
  lm: Tree,
  decoder: DecoderConfig,
  hidden: Float[Array, "B T D"],
  batch: Batch,
  *,
  train_params: bool = False,
) -> tuple[Float[Array, ""], Metrics]:
  """Hidden states of the text -> what `core.types.Method.loss` returns.

  Only the positions whose next token is a target meet the vocabulary projection. With
  `train_params` the projection gets a gradient, too, at the price of all logits at once.
  """
  log_likelihood = _log_likelihood_of_all_logits if train_params else target_log_likelihood
  positions, ids = batch["target_positions"], batch["target_ids"]
  if "real_targets" in batch:
    layout = joined_rows(0, batch["target_mask"], batch["real_targets"])
    in_all = positions + hidden.shape[1] * np.arange(len(positions))[:, None]  # of B * T
    at_targets = hidden.reshape(-1, hidden.shape[-1])[layout.join(None, in_all)]  # [1, S, D]
    joined = log_likelihood(lm, decoder, at_targets, layout.join(None, ids))
    values, is_best = (layout.split(one)[1] for one in joined)
  else:
    at_targets = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    values, is_best = log_likelihood(lm, decoder, at_targets, ids)
  real = batch["target_mask"] > 0  # [B, M]
  targets, losses = real.sum(), -jnp.where(real, values, 0.0)
  loss = losses.sum() / jnp.maximum(targets, 1)
  has_target = real.any(axis=1)
  return loss, {
    "targets": targets,
    "tokens": batch["mask"].sum(),
    "rows": has_target.sum(),
    "correct": ((is_best | ~real).all(axis=1) & has_target).sum(),
    ROW_LOSSES: losses.sum(axis=1),
  }


def _log_likelihood_of_all_logits(lm, decoder, states, ids):
  """`target_log_likelihood` with gradients of the LM's weights."""
  scores = logits(lm, decoder, states, trained=True)
  target_scores = jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
  is_best = target_scores >= scores.max(axis=-1)
  return target_scores - jax.nn.logsumexp(scores, axis=-1), is_best


def last_real(
  hidden: Float[Array, "B T D"], mask: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B 1 D"]:
  """The hidden state at each row's last real position."""
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)
