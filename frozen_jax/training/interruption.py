"""SIGTERM and SIGINT: the request to stop, kept until the loop can save.

With one process a handler of this module notes the signals. With several, JAX's preemption service
does: it notifies every host and lets them agree on the step at which all of them stop.
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import jax

from frozen_jax.core import interruption

# The hosts agree on a number of this count. It continues from stage to stage: with the stages'
# step numbers, a point agreed on at the end of a long stage might never come in a short one.
_CHECKS = itertools.count(1)


class Stopped(KeyboardInterrupt):
  """Raised out of work that may be dropped, such as a validation, when the signal comes."""


class StopRequest:
  """Notes SIGTERM and SIGINT while it is entered; the handlers before it come back after it."""

  def __init__(self) -> None:
    self._noted = False
    self._droppable = False
    self._handlers = contextlib.ExitStack()

  def __enter__(self) -> "StopRequest":
    self._noted = interruption.requested()
    if jax.process_count() == 1:
      self._handlers.enter_context(interruption.handled_by(self._handle))
    return self

  def __exit__(self, *_: object) -> None:
    self._handlers.close()

  @property
  def noted(self) -> bool:
    """Whether this process has received a signal (with several processes: always False)."""
    return self._noted

  def reached(self) -> bool:
    """Whether to stop here; every host must call it once after each step, and all agree."""
    if jax.process_count() == 1:
      return self._noted
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_CHECKS))

  def run_droppable(self, work: Callable[[], Any]) -> Any:
    """Runs work that can be done again later.

    Raises:
      Stopped: the signal came before or while it ran (one process only: hosts stay in step).
    """
    try:
      self._droppable = True
      if self._noted:
        raise Stopped
      return work()
    except Exception as error:
      if self._noted:  # it is what other code has made of `Stopped`
        raise Stopped from error
      raise
    finally:
      self._droppable = False

  def _handle(self) -> None:
    self._noted = True
    if self._droppable:
      self._droppable = False
      raise Stopped
