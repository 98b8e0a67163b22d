import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.mesh import make_mesh


def tree():
  draw = np.random.default_rng(0)
  return {
    "a": jnp.asarray(draw.normal(size=(8, 4, 6)), jnp.float32),
    "b": {"half": jnp.asarray(draw.normal(size=(4, 8)), jnp.bfloat16)},
    "ids": jnp.arange(8, dtype=jnp.int8),
    "scalar": jnp.float32(2),
  }


def with_bit_flipped(array, element, bit):
  raw = np.array(array)
  flat = raw.reshape(-1).view(f"u{raw.itemsize}")
  flat[element] ^= np.array(1 << bit, flat.dtype)
  return jnp.asarray(raw)


def test_every_single_bit_counts():
  """All 32 bits of some elements, and one bit of every element of each leaf."""
  leaves, structure = jax.tree.flatten(tree())
  seen = {checksum(tree())}
  flips = [(0, 0, bit) for bit in range(32)] + [(0, 191, bit) for bit in range(32)]
  flips += [(i, e, 3) for i, leaf in enumerate(leaves) for e in range(leaf.size)]
  flips = sorted(set(flips))
  for which, element, bit in flips:
    changed = list(leaves)
    changed[which] = with_bit_flipped(leaves[which], element, bit)
    seen.add(checksum(jax.tree.unflatten(structure, changed)))
  assert len(seen) == len(flips) + 1


@pytest.mark.parametrize(
  "sizes, spec",
  [((2, 2, 2), P(("data", "fsdp"), "tensor")), ((1, 1, 4), P(None, "tensor")), ((8, 1, 1), P())],
)
def test_the_same_on_any_mesh(sizes, spec):
  sharding = NamedSharding(make_mesh(*sizes), spec)
  whole = NamedSharding(sharding.mesh, P())
  placed = jax.tree.map(lambda a: jax.device_put(a, sharding if a.ndim > 1 else whole), tree())
  assert checksum(placed) == checksum(tree())


def test_names_order_shapes_and_dtypes_count():
  a = tree()["a"]
  seen = [
    {"a": a},
    {"b": a},
    {"a": a.reshape(4, 8, 6)},
    {"a": a[::-1]},
    {"a": jax.lax.bitcast_convert_type(a, jnp.int32)},
    {"a": a, "b": a},
    {"a": {"a": a}},
  ]
  assert len({checksum(t) for t in seen}) == len(seen)


def test_two_elements_swapped_change_it():
  a = jnp.arange(6.0)
  assert checksum({"a": a}) != checksum({"a": a[jnp.array([0, 2, 1, 3, 4, 5])]})


@pytest.mark.parametrize("dtype", ["int4", "uint8", "float16", "float8_e4m3fn", "bool", "int32"])
def test_dtypes_of_quantised_weights(dtype):
  ones, zeros = jnp.ones((4, 3), dtype), jnp.zeros((4, 3), dtype)
  assert checksum({"w": ones}) == checksum({"w": ones + zeros if dtype != "bool" else ones})
  assert checksum({"w": ones}) != checksum({"w": zeros})


def test_random_keys_and_empty_arrays_have_one_too():
  key = checksum({"key": jax.random.key(1)})
  assert key != checksum({"key": jax.random.key(2)})
  assert checksum({"empty": jnp.zeros((0, 3))}) != checksum({"empty": jnp.zeros((0, 4))})


def test_it_is_fixed():
  """Written down, so that a checksum in an old results.json stays comparable. Change it only if
  the algorithm is meant to change."""
  tree = {"w": jnp.arange(12, dtype=jnp.float32).reshape(3, 4)}
  assert checksum(tree)[:16] == "f8828c5b9393ca80"
