"""SIGTERM between the stages of a run: everything is saved there, so the run just ends."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

import jax

from frozen_jax.core.errors import Interrupted


@dataclasses.dataclass
class Progress:
  """The last step whose work is saved."""

  step: int = 0


@contextlib.contextmanager
def stoppable() -> Iterator[Progress]:
  """Turns SIGTERM into `Interrupted`; within a stage the training loop handles it by itself.

  With several processes JAX's preemption service owns the signal and nothing is installed.
  """
  progress = Progress()
  if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
    yield progress
    return

  def stop(number: int, frame: object) -> None:
    raise Interrupted(progress.step)

  previous = signal.signal(signal.SIGTERM, stop)
  try:
    yield progress
  finally:
    signal.signal(signal.SIGTERM, previous)
