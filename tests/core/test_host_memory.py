"""A process that keeps freed memory requests no new pages; tested in a process of its own."""

import ctypes
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.stress

STEPS = """
import resource, sys
from frozen_jax.core.host_memory import keep_freed_memory
if "keep" in sys.argv: keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jax.lax.optimization_barrier(jnp.roll(x, 1, axis=1)) @ x.T).sum())
x, before = jnp.ones((8, 2**21)), 0
for _ in range(24):
  step(x).block_until_ready()
  pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  print(pages - before)
  before = pages
"""


def pages(argument, **variables):
  """New pages of each of 24 steps, one array of whose temporaries fills 16,384."""
  finished = subprocess.run(
    [sys.executable, "-c", STEPS, argument],
    capture_output=True,
    text=True,
    check=True,
    env={"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "8"} | variables,
  )
  return [int(line) for line in finished.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_steps_ask_for_no_new_pages():
  given_back, kept = pages("give"), pages("keep")
  # Of the last half, as what is kept is split in other places at first, and such a step asks for
  # more; pages may be huge ones, and few.
  assert min(given_back[1:]) > 8 * (statistics.median(kept[12:]) + 1)


MEMORY = """
import resource, sys
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
keep_freed_memory()
if "wait" in sys.argv: wait_for_each_program()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sort(jnp.sort(x * 2)[::-1])[:1])
x = jnp.ones(2**21)
for _ in range(4):
  last = step(x)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
last.block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak, len(jax.live_arrays()))
"""


def test_a_step_waits_for_the_temporaries_of_the_one_before():
  """Steps that are started at once: with waiting each has ended, and freed, when it returns."""
  run = lambda *how: subprocess.run(
    [sys.executable, "-c", MEMORY, *how],
    capture_output=True,
    text=True,
    check=True,
    env={"JAX_PLATFORMS": "cpu"},
  ).stdout.split()
  assert int(run("wait")[0]) < 2**12  # kilobytes that came after the last call returned
