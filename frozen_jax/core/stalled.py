"""Sources of data that do not answer: each is named, and then ends the program.

Whatever reads from one says so (`waits_for`); a thread looks how long each of them has been waiting
(`watched`). It cannot see a page of a mapped file that does not come: that stops all threads.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

_LOG = logging.getLogger(__name__)
_waiting: dict[int, tuple[str, float]] = {}  # by thread: for which source, and since when


class waits_for:
  """A context in which one answer of a source is waited for, such as a row: entered for each."""

  __slots__ = ("_outer", "_source")

  def __init__(self, source: str):
    self._source = source

  def __enter__(self) -> None:
    thread = threading.get_ident()
    self._outer = _waiting.get(thread)
    _waiting[thread] = self._source, time.monotonic()

  def __exit__(self, *_: object) -> None:
    if self._outer is None:
      del _waiting[threading.get_ident()]
    else:
      _waiting[threading.get_ident()] = self._outer


@contextlib.contextmanager
def watched(timeout: float, end: Callable[[str], None]) -> Iterator[None]:
  """Within it a source that has not answered for `timeout` seconds is named by a line of the log.

  After as many again `end` is called with what there is to say, in a thread. 0: there is no limit.
  """
  if not timeout:
    yield
    return
  stop = threading.Event()
  threading.Thread(target=_watch, args=(timeout, end, stop), daemon=True).start()
  try:
    yield
  finally:
    stop.set()


def _watch(timeout: float, end: Callable[[str], None], stop: threading.Event) -> None:
  named: set[tuple[str, float]] = set()
  while not stop.wait(min(timeout / 4, 1.0)):
    for source, since in tuple(_waiting.values()):
      waited = time.monotonic() - since
      if waited >= 2 * timeout:
        end(gives_up("row", source, 2 * timeout))
        return
      elif waited >= timeout and (source, since) not in named:
        named.add((source, since))
        _LOG.warning("%s", waits("row", source, timeout))


def waits(what: str, source: str, seconds: float) -> str:
  """The line that names a source. what: a batch, a row."""
  return f"no {what} has come from {source} for {seconds:g} s; waiting"


def gives_up(what: str, source: str, seconds: float) -> str:
  """The error of a source that is not waited for any longer."""
  return (
    f"no {what} has come from {source} for {seconds:g} s; see whether its files or their server"
    " still answer, then run the same command again, or raise data.timeout"
  )
