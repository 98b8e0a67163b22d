"""AdamW over the trained tree: one learning rate or one for each part, one schedule for all.

The tree holds trained leaves only, so frozen ones need no label here. The only mask selects the
leaves that weight decay applies to.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.training.settings import TrainSettings, check_learning_rate, check_schedule

_NEVER_DECAYED = ("bias", "scale")  # last keys of paths


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An Optax transformation with the peaks and the schedule that it follows."""

  transform: optax.GradientTransformation
  settings: TrainSettings
  learning_rate: float | Mapping[str, float]

  def init(self, trained: Tree) -> optax.OptState:
    """The optimizer's state for this tree.

    Raises:
      UserError: the learning rates name other parts than the tree has.
    """
    _check_parts(self.learning_rate, trained)
    return self.transform.init(trained)

  def update(self, grads: Tree, state: optax.OptState, trained: Tree) -> tuple[Any, optax.OptState]:
    """Gradients -> what to add to the trained tree, and the next state."""
    return self.transform.update(grads, state, trained)

  def rate(self, update: Int[Array, ""] | int) -> dict[str, Float[Array, ""]]:
    """The learning rates of the update with this number (the first is 1), by metric name.

    `{"learning_rate": rate}`, or `{"learning_rate/PART": rate, ...}` with one for each part.
    """
    fraction = _schedule(update, self.settings)
    peaks = self.learning_rate
    if isinstance(peaks, Mapping):
      return {f"learning_rate/{part}": fraction * peak for part, peak in peaks.items()}
    return {"learning_rate": fraction * peaks}


def make_optimizer(
  settings: TrainSettings,
  learning_rate: float | Mapping[str, float],
  no_decay: Sequence[str] = (),
  *,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
) -> Optimizer:
  """AdamW with warm-up and cosine over `settings.steps` updates.

  Args:
    settings: schedule, weight decay and clipping.
    learning_rate: the peak; one for the whole tree, or {part (top-level key): peak}.
    no_decay: see `decay_mask`.

  Raises:
    UserError: a rate that is no number of 0 or more, or more steps of warm-up than steps.
  """
  peaks = learning_rate.items() if isinstance(learning_rate, Mapping) else [("all", learning_rate)]
  for part, peak in peaks:
    check_learning_rate(peak, f"the rate of {part}")
  check_schedule(settings)
  clip_norm = settings.clip_norm
  transform = optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    optax.scale_by_adam(beta1, beta2, epsilon),
    optax.add_decayed_weights(settings.weight_decay, lambda tree: decay_mask(tree, no_decay)),
    optax.scale_by_schedule(lambda updates_done: -_schedule(updates_done + 1, settings)),
    _scale_by_peak(learning_rate),
  )
  return Optimizer(transform, settings, learning_rate)


def updates_done(state: optax.OptState) -> Int[Array, ""]:
  """The number of updates that a state of `make_optimizer` has seen."""
  return optax.tree.get(
    state, "count", filtering=lambda path, _: path[-1].tuple_name == "ScaleByScheduleState"
  )


def learning_rates(
  settings: TrainSettings, defaults: Mapping[str, float], trained: Mapping[str, Tree]
) -> dict[str, float]:
  """The peak of each part of the trained tree: that of the settings, or else the default.

  Args:
    settings: rates of parts that are not trained here are ignored: stages share a section.
    defaults: the method's own rates, by part.
    trained: the trained tree.

  Raises:
    UserError: a part has neither.
  """
  rates = {**defaults, **settings.learning_rate}
  if missing := [part for part in trained if part not in rates]:
    raise UserError(
      f"{', '.join(missing)} is trained and has no learning rate; set"
      f" {settings.section}.learning_rate.{missing[0]}"
    )
  return {part: rates[part] for part in trained}


def decay_mask(trained: Tree, no_decay: Sequence[str] = ()) -> Tree:
  """The tree of booleans: whether weight decay applies to each leaf of the trained tree.

  It applies to matrices (two axes or more), but not to biases and norm scales (the last key is
  `bias` or `scale`; stacked over layers they have two axes too), nor where one of the regular
  expressions `no_decay` matches the whole path (`prompt/.*`).
  """

  def is_decayed(path: tuple[Any, ...], leaf: Any) -> bool:
    keys = [_key_name(key) for key in path]
    if leaf.ndim < 2 or (keys and keys[-1] in _NEVER_DECAYED):
      return False
    return not any(re.fullmatch(pattern, "/".join(keys)) for pattern in no_decay)

  return jax.tree_util.tree_map_with_path(is_decayed, trained)


def _scale_by_peak(peaks: float | Mapping[str, float]) -> optax.GradientTransformation:
  if not isinstance(peaks, Mapping):
    return optax.scale(peaks)
  scales = {part: optax.scale(peak) for part, peak in peaks.items()}
  return optax.partition(scales, lambda tree: {part: part for part in tree})


def _schedule(update: Int[Array, ""] | int, settings: TrainSettings) -> Float[Array, ""]:
  """The fraction (0 to 1) of the peak rate at an update, counted from 1.

  Linear from the first update, then a cosine to `final_fraction` at the last. Not composed of
  Optax's schedules: they round by up to 8e-7 otherwise, so earlier runs could not be reproduced.
  """
  update = jnp.asarray(update, jnp.float32)
  peak_at = max(settings.warmup_steps, 1)
  if settings.final_fraction == 1:  # the number of steps is no part of the program
    return jnp.where(update < peak_at, update / peak_at, 1.0)
  progress = jnp.clip((update - peak_at) / max(settings.steps - peak_at, 1), 0.0, 1.0)
  cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  decayed = settings.final_fraction + (1.0 - settings.final_fraction) * cosine
  return jnp.where(update < peak_at, update / peak_at, decayed)


def _check_parts(peaks: float | Mapping[str, float], trained: Tree) -> None:
  if not isinstance(peaks, Mapping):
    return
  parts = set(trained) if isinstance(trained, Mapping) else set()
  if parts != set(peaks):
    raise UserError(
      f"learning rates are given for {sorted(peaks)}, but what is trained is {sorted(parts)}; "
      "give one rate for each, or a single number for all"
    )


def _key_name(key: Any) -> str:
  """The plain name of one entry of a pytree key path."""
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
