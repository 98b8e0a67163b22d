"""The program `frozen-jax`, also `python -m frozen_jax`.

Signals are noted before anything heavy is imported.
"""

import sys

from frozen_jax.core import interruption


def program() -> int:
  """Runs the command of `frozen_jax.main`; its exit status."""
  interruption.note_signals()
  from frozen_jax import main

  return main.program()


if __name__ == "__main__":
  sys.exit(program())
