"""AdamW over the trained tree: one learning rate or one for each subtree, one schedule for all.

The tree holds trained leaves only, so nothing here knows of frozen ones: no labels, no masks of
what to leave alone. The only mask says what weight decay pulls on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from frozen_jax.core.errors import UserError

UNDECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """What `make_optimizer` is told.

  learning_rate   the peak; a float for the whole tree, or {top-level key: peak} for each subtree
  warmup_steps    updates of linear warm-up; the first update already moves (rate peak / warmup)
  final_fraction  of the peak, reached by a cosine at the last update; 1.0 keeps the rate constant
  weight_decay    decoupled, times the rate; see `is_decayed` for what it pulls on
  clip_norm       gradients above this global norm are scaled down to it; None or 0 for no limit
  """

  learning_rate: float | Mapping[str, float] = 1e-3
  warmup_steps: int = 0
  final_fraction: float = 0.1
  weight_decay: float = 0.0
  clip_norm: float | None = 1.0
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An Optax transformation with the schedule it follows."""

  transform: optax.GradientTransformation
  options: OptimizerOptions
  steps: int

  def init(self, trainable: Any) -> optax.OptState:
    """The optimizer's state for this tree.

    Raises:
      UserError: the learning rates name subtrees other than the tree's.
    """
    _check_rates(self.options.learning_rate, trainable)
    return self.transform.init(trainable)

  def update(self, grads: Any, state: optax.OptState, trainable: Any) -> tuple[Any, optax.OptState]:
    """Gradients -> what to add to the trained tree, and the next state."""
    return self.transform.update(grads, state, trainable)

  def rate(self, update: jax.Array | int) -> dict[str, jax.Array]:
    """The learning rates of the update with this number (the first is 1), by metric name.

    `{"learning_rate": rate}`, or `{"learning_rate/KEY": rate, ...}` with one for each subtree.
    """
    share = _share(update, self.options, self.steps)
    peaks = self.options.learning_rate
    if isinstance(peaks, Mapping):
      return {f"learning_rate/{key}": share * peak for key, peak in peaks.items()}
    return {"learning_rate": share * peaks}


def make_optimizer(options: OptimizerOptions, steps: int) -> Optimizer:
  """AdamW with warm-up and cosine over `steps` updates.

  Raises:
    UserError: options that make no sense.
  """
  _check_options(options, steps)
  clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
  transform = optax.chain(
    clip,
    optax.scale_by_adam(options.beta1, options.beta2, options.epsilon),
    optax.add_decayed_weights(options.weight_decay, mask=decay_mask),
    optax.scale_by_schedule(lambda done: -_share(done + 1, options, steps)),
    _scale_by_peak(options.learning_rate),
  )
  return Optimizer(transform, options, steps)


def is_decayed(path: tuple[str, ...], leaf: Any) -> bool:
  """Whether weight decay pulls on this leaf of the trained tree.

  The rule: matrices only (two axes or more), and of those neither biases and norm scales (the last
  key is `bias` or `scale`; stacked over layers they have two axes too) nor prompts (some key of
  the path contains `prompt`): a prompt's rows are points among the token embeddings, and zero is
  no better a place than another.
  """
  if leaf.ndim < 2 or (path and path[-1] in UNDECAYED):
    return False
  return not any("prompt" in key for key in path)


def decay_mask(trainable: Any) -> Any:
  """The tree of booleans of `is_decayed`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: is_decayed(tuple(_name(key) for key in path), leaf), trainable
  )


def _scale_by_peak(peaks: float | Mapping[str, float]) -> optax.GradientTransformation:
  if not isinstance(peaks, Mapping):
    return optax.scale(peaks)
  return optax.stateless(
    lambda updates, _: {
      key: jax.tree.map(lambda u, peak=peaks[key]: peak * u, subtree)
      for key, subtree in updates.items()
    }
  )


def _share(update: jax.Array | int, options: OptimizerOptions, steps: int) -> jax.Array:
  """The share (0 to 1) of the peak rate at an update, counted from 1."""
  update = jnp.asarray(update, jnp.float32)
  peak_at = max(options.warmup_steps, 1)
  progress = jnp.clip((update - peak_at) / max(steps - peak_at, 1), 0.0, 1.0)
  cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  decayed = options.final_fraction + (1.0 - options.final_fraction) * cosine
  return jnp.where(update < peak_at, update / peak_at, decayed)


def _check_options(options: OptimizerOptions, steps: int) -> None:
  peaks = options.learning_rate
  for peak in peaks.values() if isinstance(peaks, Mapping) else [peaks]:
    if not math.isfinite(peak) or peak < 0:
      raise UserError(f"learning rate {peak} is not a number of 0 or more")
  if not 0 <= options.warmup_steps <= steps:
    raise UserError(
      f"{options.warmup_steps} warm-up steps do not fit into {steps} steps; lower warmup_steps"
    )
  if not 0 <= options.final_fraction <= 1:
    raise UserError(f"final_fraction {options.final_fraction} is not between 0 and 1")


def _check_rates(peaks: float | Mapping[str, float], trainable: Any) -> None:
  if not isinstance(peaks, Mapping):
    return
  there = set(trainable) if isinstance(trainable, Mapping) else set()
  if there != set(peaks):
    raise UserError(
      f"learning rates are given for {sorted(peaks)}, but what is trained is {sorted(there)}; "
      "give one rate for each, or a single number for all"
    )


def _name(key: Any) -> str:
  """The plain name of one entry of a pytree key path."""
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
