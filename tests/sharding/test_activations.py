import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.sharding import activations
from frozen_jax.sharding.batch import rows_sharding
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import batch_sharding

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def on_mesh(shape):
  return jax.device_put(jnp.zeros(shape), batch_sharding(make_mesh(**MESH)))


@pytest.mark.parametrize(
  "shape, axes, spec",
  [
    ((8, 6, 4), ("batch", None, None), P(("data", "fsdp"))),
    ((8, 6, 4, 2), ("batch", None, "heads", None), P(("data", "fsdp"), None, "tensor")),
    ((8, 6, 3, 2), ("batch", None, "heads", None), P(("data", "fsdp"))),  # 3 heads do not split
    ((4, 6, 8), ("data_batch", None, "embed"), P("data", None, "fsdp")),
    ((4, 8), ("data_batch", "fsdp_vocab"), P("data", ("fsdp", "tensor"))),
  ],
)
def test_the_logical_axes_decide(shape, axes, spec):
  split = jax.jit(lambda a: activations.constrain(a + 1, *axes))(on_mesh(shape))
  assert split.sharding.is_equivalent_to(NamedSharding(split.sharding.mesh, spec), len(shape))


def test_without_a_mesh_nothing_is_constrained():
  for array in (jnp.zeros((4, 2)), jax.device_put(jnp.zeros((4, 2)), batch_sharding(make_mesh()))):
    text = jax.jit(lambda a: activations.constrain_rows(a + 1)).lower(array).as_text()
    assert "sharding_constraint" not in text and activations.mesh_of(array) is None


def test_a_mesh_may_be_that_of_another_array():
  def new(like):
    return activations.constrain(jnp.zeros((8, 2)), "batch", None, like=like), like.sum()

  assert jax.jit(new)(on_mesh((8, 2)))[0].sharding.spec[0] == ("data", "fsdp")


def test_weights_are_gathered_along_fsdp_alone():
  mesh = make_mesh(**MESH)
  kernel = jax.device_put(jnp.zeros((4, 6)), NamedSharding(mesh, P("fsdp", "tensor")))
  axes = {"attn/q/kernel": ("embed", "heads")}
  gather = jax.jit(lambda a: activations.gather_weights({"attn": {"q": {"kernel": a}}}, axes))
  spec = gather(kernel)["attn"]["q"]["kernel"].sharding
  assert spec.is_equivalent_to(NamedSharding(mesh, P(None, "tensor")), 2)


def test_the_platform_is_that_of_the_mesh():
  assert activations.platform_of(on_mesh((8, 2))) == "cpu"
  assert activations.platform_of(jnp.zeros(2)) == jax.default_backend()


@pytest.mark.parametrize("rows, axes", [(8, ("data", "fsdp")), (3, None)])
def test_a_state_keeps_its_sharding_with_other_rows(rows, axes):
  like = NamedSharding(make_mesh(**MESH), P(None, "tensor"))
  assert rows_sharding(like, rows).spec == P(axes, "tensor")
  assert rows_sharding(jnp.zeros(2).sharding, rows) is None
