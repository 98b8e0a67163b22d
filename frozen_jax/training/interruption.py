"""SIGTERM: the request to stop, kept until the loop can save.

With one process a handler of this module notes the signal. With several, JAX's preemption service
does: it notifies every host and lets them agree on the step at which all of them stop.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

# The hosts agree on a number of this count. It continues from stage to stage: with the stages'
# step numbers, a point agreed on at the end of a long stage might never come in a short one.
_CHECKS = itertools.count(1)


class Stopped(BaseException):
  """Raised out of work that may be dropped, such as a validation, when the signal comes.

  No `Exception`, so that the work does not take it for a failure of its own.
  """


class StopRequest:
  """Notes SIGTERM while it is entered as a context manager; the old handler comes back after it."""

  def __init__(self) -> None:
    self._noted = False
    self._droppable = False
    self._previous: Any = None
    self._installed = False

  def __enter__(self) -> "StopRequest":
    single_process = jax.process_count() == 1
    if single_process and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._handle)
      self._installed = True
    return self

  def __exit__(self, *_: object) -> None:
    if self._installed:
      signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
      self._installed = False

  @property
  def noted(self) -> bool:
    """Whether this process has received the signal (with several processes: always False)."""
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
    with self._dropping():
      if self._noted:
        raise Stopped
      return work()

  @contextlib.contextmanager
  def _dropping(self) -> Iterator[None]:
    self._droppable = True
    try:
      yield
    finally:
      self._droppable = False

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self._noted = True
    if self._droppable:
      self._droppable = False
      raise Stopped
