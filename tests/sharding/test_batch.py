"""Batches on the mesh: rows are split where they divide, else every device has the whole batch."""

import jax
import numpy as np
import pytest

from frozen_jax.sharding.batch import shard_batch, with_sharding_constraint
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import replicated


@pytest.mark.parametrize("rows, per_device", [(8, 2), (6, 6)])
def test_rows_are_split_where_they_divide(rows, per_device):
  batch = {"tokens": np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)}
  placed = shard_batch(batch, make_mesh(data=2, fsdp=2))["tokens"]
  np.testing.assert_array_equal(placed, batch["tokens"])
  assert {shard.data.shape for shard in placed.addressable_shards} == {(per_device, 3)}


def test_without_a_mesh_arrays_are_on_the_default_device():
  placed = shard_batch({"tokens": np.ones((2, 3))}, None)["tokens"]
  assert isinstance(placed, jax.Array) and len(placed.devices()) == 1


def test_a_constraint_of_none_leaves_the_sharding():
  mesh = make_mesh(data=2)
  split = shard_batch({"x": np.ones((2, 3))}, mesh)["x"]
  gather = jax.jit(lambda x: with_sharding_constraint(x, replicated(mesh)) * 1)
  assert gather(split).is_fully_replicated
  assert with_sharding_constraint(split, None) is split
