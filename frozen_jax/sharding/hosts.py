"""Several hosts as one machine: start, barriers, and batches of which each host has some rows.

Every host runs the same program; `start` must come before anything that touches a device.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.sharding import peers
from frozen_jax.sharding.cluster_environment import (
  AUTO_VARIABLE,
  EXPLICIT_VARIABLES,
  initialize_arguments,
)
from frozen_jax.sharding.rules import batch_sharding, check_batch_size, row_groups

WAIT_SECONDS = 600
# After which JAX takes a process for dead that sends no heartbeats; its own default is 100.
HEARTBEAT_SECONDS = 30


def start(environment: Mapping[str, str] | None = None, wait: int = 300) -> bool:
  """Starts `jax.distributed` if the environment describes several processes.

  Checked in this order: `COORDINATOR_ADDRESS` (host:port), `NUM_PROCESSES` and `PROCESS_ID`, set
  together on any machine; `FROZEN_JAX_DISTRIBUTED=auto`, which lets JAX detect its cluster (Cloud
  TPU pods, SLURM, Open MPI, Kubernetes); a SLURM or Open MPI step of more than one task. Without
  any of them this is a single process and nothing happens.

  Args:
    environment: instead of `os.environ`.
    wait: seconds to wait for the other processes.

  Returns:
    Whether several processes were started.

  Raises:
    UserError: some of the three variables are missing or malformed, or the others never came.
  """
  env = os.environ if environment is None else environment
  arguments = initialize_arguments(env)
  if arguments is None:
    return False
  jax.config.update("jax_cpu_collectives_implementation", "gloo")  # does nothing on TPU and GPU
  try:
    with peers.coordinator_errors_noted():
      jax.distributed.initialize(
        **arguments, initialization_timeout=wait, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
      )
  except (RuntimeError, ValueError) as error:
    if "must be called before" in str(error) or "only be called once" in str(error):
      raise
    reason = str(error).splitlines()[0]
    if not arguments and isinstance(error, ValueError):
      raise UserError(
        f"JAX knows no cluster that this process is part of ({reason}); set"
        f" {', '.join(EXPLICIT_VARIABLES)}, or unset {AUTO_VARIABLE}"
      ) from error
    raise UserError(
      f"the processes of this run could not find each other within {wait} s ({reason}); check "
      f"{', '.join(EXPLICIT_VARIABLES)} on every host and that the coordinator's port is open"
    ) from error
  return jax.process_count() > 1


def is_first_host() -> bool:
  """Whether this process is the one that writes logs and files and shows progress."""
  return jax.process_index() == 0


def barrier(name: str, timeout: int = WAIT_SECONDS) -> None:
  """Waits until every process calls it; returns at once with one process.

  Raises:
    RuntimeError: some process did not call it within `timeout` seconds.
  """
  if jax.process_count() == 1:
    return
  # The coordination service's barrier: unlike a collective over the devices, it has a time-out.
  from orbax.checkpoint import multihost

  try:
    multihost.get_barrier_sync_fn()(key=f"frozen_jax:{name}", timeout_ms=timeout * 1000)
  except Exception as error:
    raise RuntimeError(
      f"process {jax.process_index()} of {jax.process_count()} waited {timeout} s at {name!r} for "
      f"the others; one of them has stopped ({str(error).splitlines()[0]})"
    ) from error


def global_device_put(tree: Any, shardings: Any) -> Any:
  """`jax.device_put` onto devices of all hosts.

  Args:
    tree: arrays that every host holds as a whole, with equal values, or that are global already.
    shardings: one for all, or a tree of them.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(_device_put_leaf, tree, shardings)


def _device_put_leaf(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  is_local = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
  if sharding.is_fully_addressable or not is_local:
    return jax.device_put(leaf, sharding)
  if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    bits = _device_put_leaf(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
  array = np.asarray(leaf)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole_array(x: jax.Array) -> np.ndarray:
  """The numbers of an array that may be spread over the devices of all hosts, on every host."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def gather_bytes(data: bytes) -> list[bytes]:
  """All-gather: the bytes that each host passes, in the order of the hosts."""
  if jax.process_count() == 1:
    return [data]
  from jax.experimental import multihost_utils

  length = int(np.max(multihost_utils.process_allgather(np.int32(len(data) + 4))))
  padded = np.zeros(length, np.uint8)
  framed = len(data).to_bytes(4, "little") + data
  padded[: len(framed)] = np.frombuffer(framed, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(padded))  # [hosts, length]
  sizes = [int.from_bytes(row[:4].tobytes(), "little") for row in rows]
  return [row[4 : 4 + size].tobytes() for row, size in zip(rows, sizes, strict=True)]


@functools.cache
def host_shard(mesh: Mesh) -> tuple[int, int]:
  """`(index, count)`: this host loads part `index` of `count` equal parts of every batch.

  Hosts that share a group of rows (because `tensor` spans them) load the same part.

  Raises:
    UserError: the hosts' shares of the rows are unequal or overlap in part.
  """
  if jax.process_count() == 1:
    return 0, 1
  rows = mesh.devices.reshape(row_groups(mesh), -1)  # [data x fsdp, tensor]
  groups: dict[int, set[int]] = {}
  for group, devices in enumerate(rows):
    for device in devices:
      groups.setdefault(device.process_index, set()).add(group)
  parts = sorted({tuple(sorted(part)) for part in groups.values()})
  if sum(len(part) for part in parts) != len(rows) or len({len(part) for part in parts}) > 1:
    raise UserError(
      "the hosts' devices cannot share the rows of a batch evenly on this mesh; make mesh.tensor a "
      "divisor or a multiple of a host's devices"
    )
  return parts.index(tuple(sorted(groups[jax.process_index()]))), len(parts)


def global_batch(local: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows -> global arrays [B, ...], split over `data` and `fsdp`.

  Raises:
    UserError: the rows do not split over the mesh.
  """
  count = host_shard(mesh)[1]
  sharding = batch_sharding(mesh)
  arrays = {}
  for name, value in local.items():
    rows = value.shape[0] * count
    check_batch_size(rows, mesh, name="batch size")
    arrays[name] = jax.make_array_from_process_local_data(
      sharding, np.asarray(value), (rows, *value.shape[1:])
    )
  return arrays
