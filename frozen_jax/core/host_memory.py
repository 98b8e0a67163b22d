"""The host's memory in training on CPUs: settings of glibc's malloc and of JAX."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# Parameters of glibc's mallopt(3): how much free memory at the top of the heap is returned to the
# system (-1: none), how many blocks are mapped one by one, how many arenas the threads share (an
# arena of a thread cannot hold a large block).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Stops malloc from returning memory to the system, on a CPU with glibc; else does nothing.

  Each step allocates gigabytes of temporaries and frees them. By default that memory returns to
  the system at once, and the next step waits until the system has filled new pages with zeros: a
  third of a re-ranker's training step. Peak memory grows, since free blocks of one size are split
  for others. Call it in the main program, before any other thread starts.
  """
  if sys.platform != "linux" or _may_use_accelerator():
    return
  if adjust := getattr(ctypes.CDLL(None), "mallopt", None):
    adjust(_ARENA_MAX, 1)
    adjust(_MMAP_MAX, 0)
    adjust(_TRIM_THRESHOLD, -1)


def wait_for_each_program() -> None:
  """Has JAX run every program of one CPU device to its end before it goes on; imports jax.

  Otherwise a step may start while the temporaries of the one before it are still there, and takes
  as much memory again, or twice. Call it before JAX looks for devices.
  """
  import jax

  jax.config.update("jax_cpu_enable_async_dispatch", False)


def _may_use_accelerator() -> bool:
  """Whether jax would look for an accelerator; jax itself is not started."""
  if platforms := os.environ.get("JAX_PLATFORMS"):
    return platforms != "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return bool(plugins) or importlib.util.find_spec("libtpu") is not None
