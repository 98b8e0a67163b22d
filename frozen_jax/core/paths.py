"""Names for the leaves of a pytree of nested dicts, `layers/attn/q`, and back; their number."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

SEPARATOR = "/"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts -> `{path: leaf}`, with the keys of each dict in sorted order, as in jax.

  The order matters: random weights are drawn and files are written leaf by leaf, whatever the order
  in which the tree was built.
  """
  leaves = traverse_util.flatten_dict(dict(tree))
  return {SEPARATOR.join(path): leaves[path] for path in sorted(leaves)}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """`{path: leaf}` -> nested dicts; the inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(leaves), sep=SEPARATOR)


def num_parameters(tree: Any) -> int:
  """How many numbers the leaves of a pytree hold; its leaves may be `jax.ShapeDtypeStruct`s."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
