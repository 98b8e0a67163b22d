"""Names for the leaves of a pytree of nested dicts: `layers/attn/q` and back."""

from collections.abc import Iterator, Mapping
from typing import Any

SEPARATOR = "/"


def leaves_by_path(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields `(path, leaf)` of a tree of nested dicts in sorted order of the keys."""
  for key in sorted(tree):
    path = f"{prefix}{SEPARATOR}{key}" if prefix else str(key)
    if isinstance(tree[key], Mapping):
      yield from leaves_by_path(tree[key], path)
    else:
      yield path, tree[key]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts -> `{path: leaf}`."""
  return dict(leaves_by_path(tree))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """`{path: leaf}` -> nested dicts; the inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split(SEPARATOR)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
