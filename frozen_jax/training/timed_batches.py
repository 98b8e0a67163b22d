"""Batches that have to come in time: a source that stalls is named, and ends the stage."""

import logging
import queue
import threading
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from frozen_jax.core import stalled
from frozen_jax.core.errors import UserError

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Batches(Protocol):
  """An endless iterator of this host's rows, whose position can be read and set."""

  def __next__(self) -> Mapping[str, np.ndarray]: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class TimedBatches:
  """The same batches, each of which is waited for in vain for twice `timeout` at most."""

  def __init__(self, batches: Batches, source: str, timeout: float):
    """Sets for how long a batch is waited for.

    Args:
      batches: each is fetched in a thread of its own, for what hangs there cannot be stopped.
      source: the name of the data, for messages.
      timeout: seconds after which a line names the source, and then again until the stage stops;
        0: there is no limit.
    """
    self._batches, self._source, self._timeout = batches, source, timeout
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self) -> Mapping[str, np.ndarray]:
    """The next batch.

    Raises:
      UserError: it did not come in time.
    """
    if not self._timeout:
      return next(self._batches)
    fetched: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()
    threading.Thread(target=_fetch, args=(self._batches, fetched), daemon=True).start()
    for final in (False, True):
      try:
        rows, error = fetched.get(timeout=self._timeout)
      except queue.Empty:
        if not final:
          _LOG.warning("%s", stalled.waits("batch", self._source, self._timeout))
        continue
      if error is not None:
        raise error
      return rows
    raise UserError(stalled.gives_up("batch", self._source, 2 * self._timeout))


def _fetch(batches: Batches, fetched: queue.Queue[tuple[Any, BaseException | None]]) -> None:
  try:
    fetched.put((next(batches), None))
  except BaseException as error:
    fetched.put((None, error))
