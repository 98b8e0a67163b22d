"""One update, jitted: `step(state, frozen, batch) -> (state, metrics)`.

The gradient is taken with respect to the trained tree alone and the frozen tree is an argument of
its own, never donated: no cotangent of a frozen weight exists anywhere (about 4N FLOPs a token
instead of 6N).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from frozen_jax.core.types import ROW_LOSSES, Learner, Metrics, Tree
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.optimizer import Optimizer, updates_done
from frozen_jax.training.state import TrainState

Step = Callable[[TrainState, Tree, Any], tuple[TrainState, Metrics]]


def make_train_step(
  learner: Learner, optimizer: Optimizer, accumulate: int = 1, mesh: Mesh | None = None
) -> Step:
  """The jitted step of a learner.

  Args:
    learner: its `loss` is a mean over the batch's targets; its metrics are sums over the batch.
    optimizer: of `make_optimizer`.
    accumulate: microbatches per update. They are weighted by `metrics["targets"]`, so k of them
      give the update of the one big batch.
    mesh: the state is replicated on every device of it; None leaves the placement to XLA.

  Returns:
    The step. It donates the state. Its metrics are scalars: `loss`, `grad_norm` (before clipping),
    `skipped`, the learning rates of this update, and the learner's sums.

  Where the loss or the norm is not finite, or the loss is above `max_loss` of the settings, the
  update is not applied: `skipped` is 1, and only the number of steps moves on. The schedule counts
  the updates applied. (`optax.apply_if_finite` does not see the loss, applies what is not finite
  after some in a row, and changes the state that checkpoints hold.)
  """
  max_loss = optimizer.settings.max_loss

  def step(state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, Metrics]:
    frozen = lax.stop_gradient(frozen)
    key = jax.random.fold_in(state.key, state.step)
    loss, sums, grads = gradients(learner, state.trainable, frozen, batch, key, accumulate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    norm = optax.tree.norm(grads)
    applied = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= (max_loss or jnp.inf))
    metrics = {"loss": loss, "grad_norm": norm, "skipped": 1 - applied.astype(jnp.int32)}
    metrics |= optimizer.rate(updates_done(opt_state)) | sums
    before = state.trainable, state.opt_state
    after = jax.tree.map(
      lambda new, old: jnp.where(applied, new, old), (trainable, opt_state), before
    )
    return TrainState(state.step + 1, *after, state.key), metrics

  return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def gradients(
  learner: Learner,
  trainable: Tree,
  frozen: Tree,
  batch: Any,
  key: Key[Array, ""] | None,
  accumulate: int = 1,
) -> tuple[Float[Array, ""], Metrics, Tree]:
  """Loss (mean over all targets), the learner's sums, and the gradient for the trained tree."""
  value_and_grad = jax.value_and_grad(_with_sums(learner), has_aux=True)
  if accumulate == 1:
    (loss, sums), grads = value_and_grad(trainable, frozen, batch, key)
    return loss, dict(sums), grads

  parts = jax.tree.map(lambda x: _split(x, accumulate), batch)

  def microbatch(index: jax.Array) -> Any:
    """`((loss, gradients) weighted, sums)` of one microbatch."""
    rows = jax.tree.map(lambda x: x[index], parts)
    part_key = jax.random.fold_in(key, index)
    (loss, sums), grads = value_and_grad(trainable, frozen, rows, part_key)
    weight = sums["targets"].astype(jnp.float32)
    return jax.tree.map(lambda x: weight * x, (loss, grads)), dict(sums)

  def add(total: Any, index: jax.Array) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, microbatch(index)), None

  # The totals start from zeros of the right shapes, so that only the scan compiles `microbatch`.
  shapes = jax.eval_shape(microbatch, jax.ShapeDtypeStruct((), jnp.int32))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  ((loss, grads), sums), _ = lax.scan(add, zeros, jnp.arange(accumulate))
  targets = jnp.maximum(sums["targets"].astype(jnp.float32), 1.0)
  loss, grads = jax.tree.map(lambda x: x / targets, (loss, grads))
  return loss, sums, grads


def _with_sums(learner: Learner) -> Callable[..., tuple[jax.Array, Metrics]]:
  """The learner's loss with those of its metrics that are sums over the batch."""

  def loss(*arguments: Any) -> tuple[jax.Array, Metrics]:
    value, metrics = learner.loss(*arguments)
    return value, {name: one for name, one in metrics.items() if name != ROW_LOSSES}

  return loss


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...], row r into part r mod parts.

  Taking every k-th row leaves each row on the device that holds it.
  """
  return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
