"""The device mesh, with the axes `data`, `fsdp` and `tensor`.

`data` and `fsdp` both split the rows of a batch; `fsdp` also splits the frozen weights for storage
(they are gathered layer by layer), `tensor` splits them for computation.
"""

import jax
from jax.sharding import AxisType, Mesh

from frozen_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh of data x fsdp x tensor devices, with axes of the type Auto (XLA partitions).

  A mesh smaller than the machine takes the same number of devices from every host.

  Raises:
    UserError: a size below 1, more devices asked for than there are, or a size that the hosts
      cannot share evenly.
  """
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  for name, size in sizes.items():
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
      raise UserError(f"mesh.{name} is {size!r}; give a whole number of devices, 1 or more")
  devices = _choose_devices(data * fsdp * tensor, sizes)
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )


def _choose_devices(wanted: int, sizes: dict[str, int]) -> list[jax.Device]:
  """The first `wanted` devices, the same number from each host, host by host."""
  available, hosts = jax.device_count(), jax.process_count()
  description = " x ".join(f"{name}={size}" for name, size in sizes.items())
  if wanted > available:
    raise UserError(
      f"the mesh {description} needs {wanted} devices and this machine has {available} "
      f"({jax.default_backend()}); lower mesh.data, mesh.fsdp or mesh.tensor"
    )
  if wanted % hosts:
    raise UserError(
      f"the mesh {description} has {wanted} devices, which {hosts} hosts cannot share evenly; "
      f"make data x fsdp x tensor a multiple of {hosts}"
    )
  chosen = []
  for host in range(hosts):
    local = sorted((d for d in jax.devices() if d.process_index == host), key=lambda d: d.id)
    chosen += local[: wanted // hosts]
  if len(chosen) < wanted:
    raise UserError(
      f"the mesh {description} wants {wanted // hosts} devices of each host; one has fewer"
    )
  return chosen
