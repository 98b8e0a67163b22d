import jax
import pytest
from jax.sharding import AxisType

from frozen_jax.core.errors import UserError
from frozen_jax.sharding import mesh
from frozen_jax.sharding.mesh import log_mesh, make_mesh


def test_axes_and_sizes():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert mesh.devices.size == len(set(mesh.devices.flat)) == 8


def test_a_mesh_smaller_than_the_machine_takes_the_first_devices():
  assert list(make_mesh(tensor=2).devices.flat) == jax.devices()[:2]


def test_a_mesh_larger_than_the_machine_is_the_users_error():
  with pytest.raises(UserError, match=r"data=3 x fsdp=3 x tensor=1 needs 9 devices.* has 8"):
    make_mesh(3, 3, 1)


@pytest.mark.parametrize("size", [-1, 2.0, "2", True, None])
def test_a_size_that_is_no_number_of_devices(size):
  with pytest.raises(UserError, match="mesh.fsdp is"):
    make_mesh(fsdp=size)


@pytest.mark.parametrize(
  "sizes, rows, expected",
  [
    ({"data": 0}, 0, (8, 1, 1)),
    ({"data": 0}, 32, (8, 1, 1)),
    ({"data": 0, "fsdp": 2}, 32, (4, 2, 1)),
    ({"data": 0, "fsdp": 2, "tensor": 2}, 32, (2, 2, 2)),
    ({"data": 0, "tensor": 3}, 0, (2, 1, 3)),
    ({"fsdp": 0}, 16, (1, 8, 1)),
    ({"data": 2, "tensor": 0}, 2, (2, 1, 4)),
    ({"data": 0}, 12, (6, 1, 1)),  # as many as split the rows
    ({"data": 0}, 7, (7, 1, 1)),
    ({"data": 0}, 1, (1, 1, 1)),
    ({"data": 0, "tensor": 2}, 6, (3, 1, 2)),
    ({"data": 0, "fsdp": 8}, 8, (1, 8, 1)),
  ],
)
def test_a_size_of_0_takes_what_the_others_leave(sizes, rows, expected):
  assert tuple(make_mesh(**sizes, rows=rows).shape.values()) == expected


def test_mistakes_about_a_size_of_0():
  with pytest.raises(UserError, match=r"mesh.data and mesh.fsdp are 0; one axis alone"):
    make_mesh(data=0, fsdp=0)
  with pytest.raises(UserError, match=r"data=1 x fsdp=16 x tensor=1 needs 16 devices"):
    make_mesh(data=0, fsdp=16)
  with pytest.raises(UserError, match=r"batches of 32 rows .*data=0, fsdp=3.*a multiple of 3"):
    make_mesh(data=0, fsdp=3, rows=32)


def test_two_hosts_give_the_same_number_of_devices_each(monkeypatch):
  class Device:
    def __init__(self, id):
      self.id, self.process_index = id, id // 4

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "devices", lambda: [Device(id) for id in range(8)])
  taken = []
  monkeypatch.setattr(mesh, "arrange", lambda devices, *_: taken.append(devices))
  for rows in (8, 12, 2):
    make_mesh(data=0, rows=rows)
  assert [[device.id for device in grid] for grid in taken] == [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [0, 1, 2, 4, 5, 6],
    [0, 4],
  ]
  with pytest.raises(UserError, match="batches of 3 rows cannot be shared by 2 hosts"):
    make_mesh(data=0, rows=3)


def test_one_line_says_what_is_used(caplog):
  with caplog.at_level("INFO"):
    log_mesh(make_mesh(data=0, fsdp=2))
    log_mesh(make_mesh(data=0, rows=4))
  first, second = caplog.messages
  assert first == "using 8 of 8 devices (cpu): data=4 x fsdp=2 x tensor=1"
  assert second.startswith(
    "using 4 of 8 devices (cpu): data=4 x fsdp=1 x tensor=1; the batches split no"
  )


class Chip:
  """A TPU of a slice of 2 x 2, as JAX describes it."""

  platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

  def __init__(self, id):
    self.id, self.slice_index, self.process_index = id, id // 4, id // 4
    self.coords = (id % 2, id // 2 % 2, 0)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": 4, "fsdp": 2}, {"data": 8}])
def test_data_is_split_over_slices_and_the_other_axes_stay_within_one(sizes, monkeypatch):
  monkeypatch.setattr(mesh, "Mesh", lambda grid, *_, **__: grid)
  grid = mesh.arrange([Chip(id) for id in range(8)], {"fsdp": 1, "tensor": 1} | sizes)
  slices = [[{chip.slice_index for chip in rows.flat}] for rows in grid]
  assert all(len(found) == 1 for ((found),) in slices)
  assert [next(iter(found)) for (found,) in slices] == sorted(next(iter(f)) for (f,) in slices)


@pytest.mark.parametrize(
  "sizes, slices, message",
  [
    ({"data": 1, "fsdp": 8}, 0, "mesh.data=1 cannot be split over 2 slices"),
    ({"data": 2, "fsdp": 4}, 4, "mesh.slices is 4 and the devices are of 2"),
  ],
)
def test_slices_that_do_not_fit_are_refused(sizes, slices, message):
  with pytest.raises(UserError, match=message):
    mesh.arrange([Chip(id) for id in range(8)], {"tensor": 1} | sizes, slices)


def test_a_shape_that_the_wiring_cannot_have_is_refused():
  def refuse(*_, **__):
    raise NotImplementedError("Failed to find assignment for logical_axis_index 1")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh.mesh_utils, "create_device_mesh", refuse)
    with pytest.raises(UserError, match="cannot be arranged as data=1 x fsdp=3.*logical_axis"):
      mesh.arrange([Chip(id) for id in range(3)], {"data": 1, "fsdp": 3, "tensor": 1})
