"""SIGTERM and SIGINT outside the steps of a training: all is saved there, so the run just ends.

What the other modes write is complete or not there, so they end at once, too, and are done anew.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from frozen_jax.core import interruption
from frozen_jax.core.errors import Interrupted
from frozen_jax.core.object_store import AnyPath
from frozen_jax.training.checkpoint_folders import saved_step

_MOMENT = 0.02  # seconds


@contextlib.contextmanager
def stoppable(workdir: AnyPath | None = None) -> Iterator[None]:
  """Turns the signals into `Interrupted`; within a stage the training loop handles them by itself.

  workdir: of a training; None: there is nothing to be resumed. Whatever else other code has made of
  that exception ends as `Interrupted` too. In a training of several processes JAX's preemption
  service owns SIGTERM, and SIGINT is passed on to it.
  """
  interruption.note(False)
  if workdir is not None and jax.process_count() > 1:
    pass_on = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with interruption.handled_by(pass_on, [signal.SIGINT]):
      yield
    return

  def stop() -> None:
    interruption.note()
    raise _interrupted(workdir)

  try:
    with interruption.handled_by(stop), _raised_again():
      yield
  except Exception as error:
    if interruption.requested():
      raise _interrupted(workdir) from error
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


def check(workdir: AnyPath | None = None) -> None:
  """Raises `Interrupted` where a signal came and what it raised was lost."""
  if interruption.requested():
    raise _interrupted(workdir)


def _interrupted(workdir: AnyPath | None) -> Interrupted:
  return Interrupted(None if workdir is None else saved_step(workdir))
