"""The environments of the processes that tests start, and the flags of XLA for all tests.

Imports no jax: `conftest.py` sets the flags before anything does.
"""

import os
import pathlib
import socket

ROOT = pathlib.Path(__file__).parents[1]

# Tiny models spend their time in the compiler. These flags halve it (BUILD_NOTES).
QUICK_COMPILE = (
  "--xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)


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
