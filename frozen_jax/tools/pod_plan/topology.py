"""The devices of a TPU topology that this machine does not have, as its compiler describes them."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

from jax.experimental import topologies
from jax.sharding import Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import AXES, arrange
from frozen_jax.tools.pod_plan.chips import chip_of

# libtpu would ask the network and the environment of a TPU machine what it is.
_NO_MACHINE = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor does it hold a TPU that no other process may use
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


def topology_devices(topology: str) -> list:
  """The devices of a topology such as "v5p:4x4x8".

  Raises:
    UserError: no such topology, or libtpu, which has the compiler, is not installed.
  """
  chip_of(topology)
  for name, value in _NO_MACHINE.items():
    os.environ.setdefault(name, value)
  try:
    with _quiet():
      found = topologies.get_topology_desc(topology_name=topology, platform="tpu")
  except Exception as error:
    if not _has_libtpu():
      raise UserError(
        "the compiler for TPUs is not installed; pip install 'frozen_jax[plan]' brings it"
      ) from None
    raise UserError(f"--topology={topology}: {str(error).splitlines()[0]}") from None
  return list(found.devices)


def topology_mesh(topology: str, sizes: Mapping[str, int]) -> Mesh:
  """A mesh of all devices of a topology; a size of 0 takes what the other axes leave.

  Raises:
    UserError: the sizes do not use all of the devices, or cannot be arranged.
  """
  devices = topology_devices(topology)
  used = 1
  for size in sizes.values():
    used *= size or 1
  whole = {axis: sizes[axis] or len(devices) // used for axis in AXES}
  product = whole["data"] * whole["fsdp"] * whole["tensor"]
  if product != len(devices):
    description = ",".join(f"{axis}={size}" for axis, size in whole.items())
    raise UserError(
      f"the mesh {description} has {product} devices and {topology} has {len(devices)}; give sizes"
      " with that product, or 0 for one of them"
    )
  return arrange(devices, whole)


def _has_libtpu() -> bool:
  try:
    import libtpu  # noqa: F401
  except ImportError:
    return "TPU_LIBRARY_PATH" in os.environ
  return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Within it nothing is written to standard error: libtpu says that this machine has no TPU."""
  saved = os.dup(2)
  with pathlib.Path(os.devnull).open("w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(saved, 2)
      os.close(saved)
