"""The two ways in which a run ends early on purpose, and the exit status of a user's mistake."""

import sys
from collections.abc import Callable


class UserError(Exception):
  """What the user gave is wrong.

  The message is one line that says what is wrong and how to mend it; a command prints it behind
  `error:` on standard error and exits with status 2, without a traceback (see `exit_status`).
  """


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM), has saved its state and can be resumed; exit status 0."""

  def __init__(self, step: int):
    super().__init__(f"interrupted at step {step}")
    self.step = step


def exit_status(command: Callable[[], object]) -> int:
  """Does what a command says; 0, or 2 when the user's mistake stopped it, which is then printed."""
  try:
    command()
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  return 0
