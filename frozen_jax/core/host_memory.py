"""What a process on a CPU does with memory that it has freed: it keeps it for the next step."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# glibc's mallopt(3): how much free memory at the end is given back (-1: none), how many blocks are
# mapped one by one, how many arenas threads have (one of its own could not hold a large block).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Keeps what is freed, where this process computes on a CPU and its malloc is glibc's.

  Each step takes its temporaries, gigabytes of them, from malloc and frees them. By default they
  go back to the system at once, and the next step waits until new pages are filled with zeros; of
  a re-ranker's training step that was a third. Peak memory grows, as free blocks of one size are
  split for others. To be called by the owner of the process, before any other thread starts.
  """
  if sys.platform != "linux" or _accelerated():
    return
  if adjust := getattr(ctypes.CDLL(None), "mallopt", None):
    adjust(_ARENA_MAX, 1)
    adjust(_MMAP_MAX, 0)
    adjust(_TRIM_THRESHOLD, -1)


def _accelerated() -> bool:
  """Whether jax would look for an accelerator; asked without starting it."""
  if platforms := os.environ.get("JAX_PLATFORMS"):
    return platforms != "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return bool(plugins) or importlib.util.find_spec("libtpu") is not None
