"""The errors with which a run ends on purpose, and the exit status of a user's mistake."""

import sys
from collections.abc import Callable


class UserError(Exception):
  """A mistake of the user: a wrong option, file or value.

  The message is one line: what is wrong and how to fix it. A command prints it after `error:` on
  standard error and exits with status 2, without a traceback (see `exit_status`).
  """


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM), has saved its state and can be resumed; exit status 0."""

  def __init__(self, step: int):
    super().__init__(f"interrupted at step {step}")
    self.step = step


def exit_status(command: Callable[[], object]) -> int:
  """Runs a command; returns 0, or 2 after a UserError, whose message is printed."""
  try:
    command()
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  return 0
