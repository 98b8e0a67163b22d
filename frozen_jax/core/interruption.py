"""The signals that ask a program to stop: SIGTERM (a scheduler's) and SIGINT (Ctrl-C).

What a handler raises can be lost or turned into another exception in code that is not ours. So a
request is also noted here, and asked for where work begins (`requested`).
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 10.0

_STOP, _GO = b"1", b"0"

_requested = False
_deferred: list[int] | None = None  # what came while signals are deferred
_grace_pipe: int | None = None  # to the thread of `ended_by`


def requested() -> bool:
  """Whether the run that is under way was asked to stop."""
  return _requested


def note(value: bool = True) -> None:
  """Notes that the run is to stop; False: that another one begins."""
  global _requested
  if value != _requested and _grace_pipe is not None:
    os.write(_grace_pipe, _STOP if value else _GO)
  _requested = value


@contextlib.contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
  """Calls `end`, in a thread, where a run has not stopped `GRACE_SECONDS` after it was noted.

  Code that is not ours may wait for its own threads first, as the hub's client does for downloads.
  """
  global _grace_pipe
  reader, writer = os.pipe()  # a signal handler must take no lock
  watch = threading.Thread(target=_watch, args=(reader, end), daemon=True)
  watch.start()
  before, _grace_pipe = _grace_pipe, writer
  try:
    yield
  finally:
    note(False)
    _grace_pipe = before
    os.close(writer)
    watch.join()


def _watch(reader: int, end: Callable[[], None]) -> None:
  while message := os.read(reader, 1):
    if message == _STOP and not select.select([reader], [], [], GRACE_SECONDS)[0]:
      end()
  os.close(reader)


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
    if _deferred is None:
      handler()
    else:
      _deferred.append(number)

  previous = {number: signal.getsignal(number) for number in signals}
  try:
    for number in signals:
      signal.signal(number, handle)
    yield
  finally:
    for number, before in previous.items():
      signal.signal(number, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Signals that come meanwhile are handled at the end: for what is short and to be whole.

  That is, those that `handled_by` handles.
  """
  global _deferred
  if _deferred is not None or threading.current_thread() is not threading.main_thread():
    yield
    return
  came: list[int] = []
  _deferred = came
  try:
    yield
  finally:
    _deferred = None
    for first in came[:1]:
      signal.raise_signal(first)


def note_signals() -> None:
  """From here on the signals are noted, until they are handled (`handled_by`)."""
  for number in SIGNALS:
    signal.signal(number, lambda *_: note())


def ignore() -> None:
  """From here on the signals do nothing: the process is about to end by itself."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
