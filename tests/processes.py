"""The environments of the processes that tests start; the flags of XLA and the compiled programs
of all tests.

Imports no jax: `conftest.py` sets these variables before anything does.
"""

import os
import pathlib
import socket
import tempfile

ROOT = pathlib.Path(__file__).parents[1]

# Tiny models spend their time in the compiler. These flags halve it (BUILD_NOTES).
QUICK_COMPILE = (
  "--xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)


# A process that reads an entry while another one writes it says so, and compiles.
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry"
COMPILED = "JAX_COMPILATION_CACHE_DIR"


def share_compiled():
  """Has this process and all that it starts share what they compile -> the new folder, or None.

  None where the variable is set: in a worker of pytest-xdist, or by the user.
  """
  if COMPILED in os.environ:
    return None
  folder = tempfile.mkdtemp(prefix="frozen_jax_compiled_")
  os.environ |= {
    COMPILED: folder,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), HALF_WRITTEN))),
  }
  return folder


def xla_flags(devices):
  """For this number of simulated CPU devices."""
  return f"{QUICK_COMPILE} --xla_force_host_platform_device_count={devices}"


def environment(devices=1, **variables):
  """This process's environment, but with CPU devices of the new process's own number."""
  own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT)}
  return os.environ | own | variables


def cluster(count=2):
  """The variables of each of `count` processes on this machine that form one JAX program."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  shared = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(count)}
  return [shared | {"PROCESS_ID": str(process)} for process in range(count)]
