"""SIGTERM and SIGINT between the steps of a run: all is saved there, so the run just ends."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from frozen_jax.core import interruption
from frozen_jax.core.errors import Interrupted
from frozen_jax.training.checkpoint_folders import saved_step

_MOMENT = 0.02  # seconds


@contextlib.contextmanager
def stoppable(workdir: pathlib.Path) -> Iterator[None]:
  """Turns the signals into `Interrupted`; within a stage the training loop handles them by itself.

  Whatever else other code has made of that exception ends as `Interrupted` too. With several
  processes JAX's preemption service owns SIGTERM, and SIGINT is passed on to it.
  """
  interruption.note(False)
  if jax.process_count() > 1:
    pass_on = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with interruption.handled_by(pass_on, [signal.SIGINT]):
      yield
    return

  def stop() -> None:
    interruption.note()
    raise Interrupted(saved_step(workdir))

  try:
    with interruption.handled_by(stop), _raised_again():
      yield
  except Exception as error:
    if interruption.requested():
      raise Interrupted(saved_step(workdir)) from error
    raise
  finally:
    interruption.note(False)


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
  """Sends the signal again, a moment later, where a callback has lost what it raised.

  Destructors and callbacks of the garbage collector, of which jax has one, bear no exception.
  """
  before = sys.unraisablehook

  def lost(found: "sys.UnraisableHookArgs") -> None:
    if isinstance(found.exc_value, Interrupted):
      threading.Timer(_MOMENT, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
      before(found)

  sys.unraisablehook = lost
  try:
    yield
  finally:
    sys.unraisablehook = before


def check(workdir: pathlib.Path) -> None:
  """Raises `Interrupted` where a signal came and what it raised was lost."""
  if interruption.requested():
    raise Interrupted(saved_step(workdir))
