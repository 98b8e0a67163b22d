import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from frozen_jax.core.errors import UserError
from frozen_jax.sharding import rules
from frozen_jax.sharding.mesh import make_mesh

AXES = {
  r"embed/tokens": ("vocab", "embed"),
  r"layers/attn/[qkv]/kernel": ("layers", "embed", "heads"),
  r"layers/.*norm/scale": ("layers", None),
}


def tree(vocabulary=16):
  return {
    "embed": {"tokens": jnp.zeros((vocabulary, 8))},
    "layers": {
      "attn": {"q": {"kernel": jnp.zeros((3, 8, 4))}},
      "norm": {"scale": jnp.ones((3, 8))},
    },
  }


def specs(shapes, axes=None, **mesh):
  return jax.tree.map(lambda s: s.spec, rules.shardings(shapes, axes or AXES, make_mesh(**mesh)))


def test_every_parameter_gets_the_axes_of_the_table():
  assert specs(tree(), fsdp=2, tensor=2) == {
    "embed": {"tokens": P("tensor", "fsdp")},
    "layers": {
      "attn": {"q": {"kernel": P(None, "fsdp", "tensor")}},
      "norm": {"scale": P(None, None)},
    },
  }


def test_shapes_without_arrays_do():
  shapes = jax.eval_shape(tree)
  assert specs(shapes, fsdp=2) == specs(tree(), fsdp=2)


def test_a_dimension_that_the_mesh_does_not_divide_is_replicated():
  assert specs(tree(vocabulary=15), fsdp=2, tensor=2)["embed"]["tokens"] == P(None, "fsdp")


def test_arrays_really_lie_split():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(tree(), rules.shardings(tree(), AXES, mesh))
  assert placed["embed"]["tokens"].addressable_shards[0].data.shape == (8, 4)


def test_no_rule_is_an_error():
  with pytest.raises(ValueError, match="no sharding rule matches.*layers/mlp"):
    specs({"layers": {"mlp": jnp.zeros((2, 2))}})


def test_a_rule_must_match_the_whole_path():
  with pytest.raises(ValueError, match="no sharding rule matches"):
    specs({"embed": {"tokens": {"extra": jnp.zeros((2, 2))}}})


def test_two_rules_are_an_error():
  with pytest.raises(ValueError, match="2 sharding rules match the parameter 'embed/tokens'"):
    specs(tree(), AXES | {r"embed/.*": ("vocab", "embed")})


def test_axes_that_do_not_fit_the_shape_are_an_error():
  with pytest.raises(ValueError, match="has shape .* but the axes"):
    specs({"embed": {"tokens": jnp.zeros((2, 2, 2))}})
  with pytest.raises(ValueError, match="unknown logical axis 'width'"):
    specs({"a": jnp.zeros((2,))}, {"a": ("width",)})


def test_a_leaf_of_several_arrays_is_placed_by_its_path():
  quantised = {"embed": {"tokens": (jnp.zeros((16, 8), jnp.int8), jnp.zeros((16, 1)))}}
  assert specs(quantised, fsdp=2, tensor=2)["embed"]["tokens"] == (
    P("tensor", "fsdp"),
    P("tensor", None),
  )


def test_rows_of_a_batch_are_split_over_data_and_fsdp():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  rows = jax.device_put(jnp.zeros((8, 5)), rules.batch_sharding(mesh))
  assert rows.addressable_shards[0].data.shape == (2, 5)
  assert rules.row_groups(mesh) == 4
  assert jax.device_put(rows, rules.replicated(mesh)).is_fully_replicated
  assert rules.replicated(None) is None


@pytest.mark.parametrize("rows, accumulate", [(4, 1), (8, 2), (40, 5)])
def test_batch_sizes_that_split_evenly(rows, accumulate):
  assert rules.check_batch_size(rows, make_mesh(data=2, fsdp=2), accumulate) is None


@pytest.mark.parametrize(
  "rows, accumulate, would_do",
  [(6, 1, "4 or 8"), (2, 1, "4"), (0, 1, "4"), (12, 2, "8 or 16")],
)
def test_batch_sizes_that_do_not(rows, accumulate, would_do):
  with pytest.raises(UserError, match=f"train.batch_size {rows} .*; {would_do} would do"):
    rules.check_batch_size(rows, make_mesh(data=2, fsdp=2), accumulate, "train.batch_size")
