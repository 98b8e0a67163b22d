"""Paths of leaves: sorted like jax's leaves, and back to the tree."""

import jax

from frozen_jax.core import paths


def test_leaves_are_in_the_order_of_jax_whatever_the_order_of_insertion():
  tree = {"b": {"y": 1, "x": 2}, "a-b": 3, "a": {"z": {"k": 4}}, "empty": {}}
  flat = paths.flatten(tree)
  assert list(flat.items()) == [("a/z/k", 4), ("a-b", 3), ("b/x", 2), ("b/y", 1)]
  assert list(flat.values()) == jax.tree.leaves(tree)
  assert paths.unflatten(flat) == {name: value for name, value in tree.items() if name != "empty"}
