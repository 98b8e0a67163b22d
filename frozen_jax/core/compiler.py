"""How much XLA optimises a program before it runs."""

import contextlib
from collections.abc import Iterator

import jax

_FLAG = "jax_disable_most_optimizations"


@contextlib.contextmanager
def most_optimizations_disabled(disabled: bool = True) -> Iterator[None]:
  """Within it XLA compiles in a third of the time, to slower code; no change if not `disabled`.

  It is JAX's flag of that name. Results are rounded otherwise than those of optimised code. What
  this process has compiled already stays as it is.
  """
  before = jax.config.read(_FLAG)
  jax.config.update(_FLAG, before or disabled)
  try:
    yield
  finally:
    jax.config.update(_FLAG, before)
