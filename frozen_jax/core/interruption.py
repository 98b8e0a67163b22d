"""The signals that ask a program to stop: SIGTERM (a scheduler's) and SIGINT (Ctrl-C).

What a handler raises can be lost or turned into another exception in code that is not ours. So a
request is also noted here, and asked for where work begins (`requested`).
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_requested = False


def requested() -> bool:
  """Whether the run that is under way was asked to stop."""
  return _requested


def note(value: bool = True) -> None:
  """Notes that the run is to stop; False: that another one begins."""
  global _requested
  _requested = value


@contextlib.contextmanager
def handled_by(
  handler: Callable[[], None], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
  """Calls `handler` at these signals; the handlers before it come back at the end.

  Does nothing outside the main thread, where Python has no signals.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handle(number: int, frame: FrameType | None) -> None:
    handler()

  previous = {number: signal.getsignal(number) for number in signals}
  try:
    for number in signals:
      signal.signal(number, handle)
    yield
  finally:
    for number, before in previous.items():
      signal.signal(number, signal.SIG_DFL if before is None else before)


def note_signals() -> None:
  """From here on the signals are noted, until they are handled (`handled_by`)."""
  for number in SIGNALS:
    signal.signal(number, lambda *_: note())


def ignore() -> None:
  """From here on the signals do nothing: the process is about to end by itself."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
