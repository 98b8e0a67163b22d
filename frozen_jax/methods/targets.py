"""What every method's loss ends in: the likelihood of the targets, and the sums it reports."""

import jax
import jax.numpy as jnp

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder import logits
from frozen_jax.backbones.loss import target_log_likelihood
from frozen_jax.core.types import Batch, Metrics, Tree


def loss_at_targets(
  lm: Tree, decoder: DecoderConfig, hidden: jax.Array, batch: Batch, *, trained: bool = False
) -> tuple[jax.Array, Metrics]:
  """Hidden states of the text [B, T, D] -> what `Method.loss` returns.

  Only the positions whose next token is a target meet the vocabulary projection. Where the LM is
  `trained` itself, the projection gets a gradient, too, at the price of all logits at once.
  """
  at_targets = jnp.take_along_axis(hidden, batch["target_positions"][..., None], axis=1)
  known = _plain if trained else target_log_likelihood
  likelihood, is_best = known(lm, decoder, at_targets, batch["target_ids"])
  real = batch["target_mask"] > 0  # [B, M]
  targets = real.sum()
  loss = -jnp.where(real, likelihood, 0.0).sum() / jnp.maximum(targets, 1)
  has_target = real.any(axis=1)
  return loss, {
    "targets": targets,
    "tokens": batch["mask"].sum(),
    "rows": has_target.sum(),
    "correct": ((is_best | ~real).all(axis=1) & has_target).sum(),
  }


def _plain(lm, decoder, states, ids):
  """`target_log_likelihood` of an LM that is trained."""
  scores = logits(lm, decoder, states, trained=True)
  wanted = jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
  return wanted - jax.nn.logsumexp(scores, axis=-1), wanted >= scores.max(axis=-1)


def last_real(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """The hidden state [B, 1, D] at each row's last real position of [B, T, D]."""
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)
