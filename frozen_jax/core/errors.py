"""The errors with which a run ends on purpose, and the exit status of a user's mistake."""

import select
import sys
from collections.abc import Callable

from frozen_jax.core.disk_errors import is_full
from frozen_jax.core.streams import complete_streams, drop


class UserError(Exception):
  """A mistake of the user: a wrong option, file or value.

  The message is one line: what is wrong and how to fix it. A command prints it after `error:` on
  standard error and exits with status 2, without a traceback (see `exit_status`).
  """


class StoreError(Exception):
  """An object store fails while a run needs it; the message is one line, the exit status 1."""


class Interrupted(KeyboardInterrupt):
  """The run was asked to stop (SIGTERM, Ctrl-C); exit status 0.

  step: from which a training can be resumed; None: of what is done anew.

  No `Exception`: whoever handles any failure of some work must not take it for one. As a
  KeyboardInterrupt it passes through event loops and thread pools too.
  """

  def __init__(self, step: int | None = None):
    super().__init__("interrupted" if step is None else f"interrupted at step {step}")
    self.step = step


def exit_status(command: Callable[[], object]) -> int:
  """Runs a command; returns 0, or 2 after a UserError and 1 after a StoreError, whose message is
  printed.

  2 is also returned where a disk is full, whatever was written. Where the reader of standard output
  has gone, as `head` does, the command ends quietly. Standard streams may be closed.
  """
  complete_streams()
  try:
    command()
    sys.stdout.flush()
  except UserError as error:
    return _refused(str(error))
  except StoreError as error:
    return _refused(str(error), status=1)
  except BrokenPipeError:
    if not _reader_has_gone():
      raise
    drop(sys.stdout)
  except Exception as error:
    if not is_full(error):
      raise
    what = getattr(error, "filename", None) or "all that is to be written"
    reason = getattr(error, "strerror", None) or error
    return _refused(
      f"cannot write {what} ({reason}); free some space and run the same command again"
    )
  return 0


def _refused(message: str, status: int = 2) -> int:
  try:
    sys.stdout.flush()
  except OSError:
    drop(sys.stdout)  # or the interpreter would try once more when it ends
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  return status


def _reader_has_gone() -> bool:
  """Whether standard output is a pipe that nobody reads."""
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))
