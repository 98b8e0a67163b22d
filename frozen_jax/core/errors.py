"""The two ways in which a run ends early on purpose; `main` turns each into an exit status."""


class UserError(Exception):
  """What the user gave is wrong.

  The message is one line that says what is wrong and how to mend it; `main` prints it behind
  `error:` on standard error and exits with status 2, without a traceback.
  """


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM), has saved its state and can be resumed; exit status 0."""

  def __init__(self, step: int):
    super().__init__(f"interrupted at step {step}")
    self.step = step
