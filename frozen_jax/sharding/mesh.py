"""The device mesh, with the axes `data`, `fsdp` and `tensor`.

`data` and `fsdp` both split the rows of a batch; `fsdp` also splits the frozen weights for storage
(they are gathered layer by layer), `tensor` splits them for computation.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.settings import check_open_axes

AXES = ("data", "fsdp", "tensor")

_LOG = logging.getLogger(__name__)


def make_mesh(
  data: int = 1, fsdp: int = 1, tensor: int = 1, rows: int = 0, slices: int = 0
) -> Mesh:
  """A mesh of data x fsdp x tensor devices, with axes of the type Auto (XLA partitions).

  A size of 0 takes all devices of all hosts that the other axes leave: as many as split `rows`, the
  rows of a batch, evenly. A mesh smaller than the machine takes the same number of devices from
  every host. `slices`: see `arrange`.

  Raises:
    UserError: a size below 0, two of 0, more devices asked for than there are, or a size that the
      hosts cannot share evenly.
  """
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  for name, size in sizes.items():
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
      raise UserError(
        f"mesh.{name} is {size!r}; give a whole number of devices, or 0 for all that are left"
      )
  sizes = _resolved(sizes, rows)
  return arrange(_choose_devices(math.prod(sizes.values()), sizes), sizes, slices)


def arrange(devices: Sequence[jax.Device], sizes: Mapping[str, int], slices: int = 0) -> Mesh:
  """The mesh of these devices, so that neighbours along an axis are near each other.

  sizes: of each of `AXES`; their product is the number of devices. An axis of the mesh may be part
  of an axis of the machine, or run along several. slices: of TPUs, which a slower network connects;
  `data` is split over them first. 0: as many as the devices are of.

  Raises:
    UserError: the devices' wiring does not have axes of these sizes, or is of other slices.
  """
  shape = tuple(sizes[axis] for axis in AXES)
  slices = _num_slices(devices, slices)
  if sizes["data"] % slices:
    raise UserError(
      f"mesh.data={sizes['data']} cannot be split over {slices} slices; make it a multiple of"
      f" {slices}, since fsdp and tensor stay within a slice"
    )
  try:
    if slices > 1:
      within = (shape[0] // slices, *shape[1:])
      grid = mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1), devices, allow_split_physical_axes=True
      )
    else:
      grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (NotImplementedError, ValueError, AssertionError) as error:
    description = " x ".join(f"{name}={size}" for name, size in sizes.items())
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{len(devices)} devices of kind {devices[0].device_kind} cannot be arranged as {description}"
      f" ({reason}); give each axis a size whose factors are those of the machine's axes, or all of"
      " the devices to mesh.fsdp"
    ) from error
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _num_slices(devices: Sequence[jax.Device], wanted: int) -> int:
  """Of how many slices the devices are; UserError where that is not what is wanted (0: any)."""
  found = len({getattr(device, "slice_index", 0) for device in devices})
  if wanted not in (0, found):
    raise UserError(
      f"mesh.slices is {wanted} and the devices are of {found}; leave it at 0 to take what there is"
    )
  return found


def log_mesh(mesh: Mesh) -> None:
  """Says how many devices are used, and by which axes; on one host only."""
  used, available = mesh.devices.size, jax.device_count()
  axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
  of = f"{used} of {available} devices" if available > 1 else "1 device"
  if used < available:
    axes += "; the batches split no further, or mesh.* is set to fewer"
  if is_first_host():
    _LOG.info("using %s (%s): %s", of, mesh.devices.flat[0].device_kind, axes)


def _resolved(sizes: dict[str, int], rows: int) -> dict[str, int]:
  """The sizes with a number in place of a 0."""
  open_axes = [name for name, size in sizes.items() if size == 0]
  if not open_axes:
    return sizes
  check_open_axes(sizes)
  (axis,) = open_axes
  others = math.prod(size for size in sizes.values() if size)  # devices of the other axes
  hosts, largest = jax.process_count(), max(jax.device_count() // others, 1)
  fits = [size for size in range(1, largest + 1) if size * others % hosts == 0]
  if axis != "tensor" and rows:
    groups = others // (sizes["tensor"] or 1)  # of rows, that the other axes make
    split = [size for size in fits if rows % (size * groups) == 0]
    if fits and not split:
      raise UserError(
        f"batches of {rows} rows cannot be shared by {hosts} hosts on a mesh of"
        f" {', '.join(f'{name}={size}' for name, size in sizes.items())}; make train.batch_size a"
        f" multiple of {math.lcm(hosts, groups)}, or choose another mesh"
      )
    fits = split
  return sizes | {axis: max(fits, default=1)}


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
