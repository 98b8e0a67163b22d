"""What the environment says about the processes of a run. Imports no jax."""

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from frozen_jax.core.errors import UserError

EXPLICIT_VARIABLES = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
AUTO_VARIABLE = "FROZEN_JAX_DISTRIBUTED"
_NATIVE_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def quiet_native_log(environment: MutableMapping[str, str] = os.environ) -> None:
  """With several processes, keeps JAX's own account of a lost one off standard error.

  Before jax is imported. What is lost is said in one sentence (`sharding.peers`). A level that is
  set stays.
  """
  try:
    several = initialize_arguments(environment) is not None
  except UserError:
    return
  if several:
    environment.setdefault(_NATIVE_LOG_LEVEL, "3")  # fatal errors only


def initialize_arguments(env: Mapping[str, str]) -> dict[str, Any] | None:
  """The arguments of `jax.distributed.initialize`; None for a single process."""
  given = [name for name in EXPLICIT_VARIABLES if env.get(name)]
  if given and len(given) < len(EXPLICIT_VARIABLES):
    missing = ", ".join(name for name in EXPLICIT_VARIABLES if name not in given)
    raise UserError(f"{', '.join(given)} is set but not {missing}; set all three, or none")
  if given:
    address, count, index = (env[name] for name in EXPLICIT_VARIABLES)
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
      raise UserError(
        f"NUM_PROCESSES={count} and PROCESS_ID={index} do not fit; ids count from 0 upwards"
      )
    if not _is_address(address):
      raise UserError(f"COORDINATOR_ADDRESS={address} is not host:port")
    if int(count) == 1:
      return None
    return {
      "coordinator_address": address,
      "num_processes": int(count),
      "process_id": int(index),
      "cluster_detection_method": "deactivate",
    }
  several = _num_tasks(env, "SLURM_NTASKS") > 1 and "SLURM_PROCID" in env
  several = several or _num_tasks(env, "OMPI_COMM_WORLD_SIZE") > 1
  if (detection := env.get(AUTO_VARIABLE, "")) not in ("", "auto"):
    raise UserError(f"{AUTO_VARIABLE}={detection} is not known; set it to auto, or unset it")
  return {} if several or detection else None


def _is_address(text: str) -> bool:
  host, _, port = text.rpartition(":")
  is_host = bool(host) and "/" not in host and not any(map(str.isspace, host))
  return is_host and port.isdecimal() and 0 < int(port) < 2**16


def _num_tasks(env: Mapping[str, str], name: str) -> int:
  value = env.get(name, "")
  return int(value) if value.isdecimal() else 1
