import jax
import pytest
from jax.sharding import AxisType

from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh


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


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True, None])
def test_a_size_that_is_no_number_of_devices(size):
  with pytest.raises(UserError, match="mesh.fsdp is"):
    make_mesh(fsdp=size)
