"""Running a decoder's stacked layers: one scan, with 16-bit floats carried as integers.

XLA's CPU backend has no slice or update of bfloat16 arrays; it widens the whole stack to float32
first, which for the weights costs a copy of the model in every pass. As 16-bit integers the same
bytes are sliced as they are; on other backends the round trip is free.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from frozen_jax.backbones.quantized import Quantized, dense

Tree = Any


def scan(
  body: Callable[[Any, Tree], tuple[Any, Tree]],
  carry: Any,
  stacked: Tree,
  keep: Sequence[str] | None = None,
  trained: Tree = None,
  count: int | None = None,
) -> tuple[Any, Tree]:
  """`lax.scan` of body(carry, slices) -> (carry, outputs) over trees of [L, ...] arrays.

  `count`: over the first so many slices alone.

  No gradient flows to what is stacked: it is frozen, or a cache. Where there is a `trained` tree
  (float32, [L, ...] too), the body gets (slices, slices of it) and gradients flow to it. For the
  backward pass each turn keeps its carry and the values named in `keep` (see `checkpoint_name`) and
  recomputes the rest; None keeps everything.
  """

  def turn(carry, at):
    at, small = at
    index, held = jax.lax.optimization_barrier((at, stacked))
    slices = jax.tree.map(
      lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), pack(held)
    )
    slices = unpack(slices, dtypes)
    carry, outputs = body(carry, slices if trained is None else (slices, small))
    formats.append(jax.tree.map(lambda a: a.dtype, outputs))
    return carry, pack(outputs)

  dtypes, formats = jax.tree.map(lambda a: a.dtype, stacked), []
  count = jax.tree.leaves(stacked)[0].shape[0] if count is None else count
  carry, outputs = jax.lax.scan(_keeping(turn, keep), carry, (jnp.arange(count), trained))
  return carry, unpack(outputs, formats[-1])


def scan_trained(
  body: Callable[[Any, Tree], tuple[Any, Tree]],
  carry: Any,
  stacked: Tree,
  keep: Sequence[str] | None = None,
  count: int | None = None,
) -> tuple[Any, Tree]:
  """`scan` over layers that are themselves trained: gradients flow to all that is stacked.

  Where everything is kept the turns are written out one by one: stacking what each keeps, and
  taking it from the stack, would cost a third of a step.
  """
  stacked = jax.tree.map(lambda a: a[:count], stacked)
  return jax.lax.scan(_keeping(body, keep), carry, stacked, unroll=keep is None)


def _keeping(turn: Callable, keep: Sequence[str] | None) -> Callable:
  """The turn of a scan, of which the backward pass finds only what is named; None: everything."""
  if keep is None:
    return turn
  policy = jax.checkpoint_policies.save_only_these_names(*keep)
  return jax.checkpoint(turn, prevent_cse=False, policy=policy)


def take(table: jax.Array | Quantized, rows: jax.Array, axis: int = 0) -> jax.Array:
  """`jnp.take` of a frozen table, without widening it (see above); only what is taken is made whole
  of one that is quantised."""
  rows, held = jax.lax.optimization_barrier((rows, table))  # or the packed table is made once
  return dense(each(lambda a: jnp.take(a, rows, axis=axis), held))


def each(change: Callable[..., jax.Array], tree: Tree, *others: Tree) -> Tree:
  """`change`, which moves numbers and computes none, of every array, without widening it.

  With `others` of the same form it gets one array of each.
  """
  dtypes = jax.tree.map(lambda a: a.dtype, tree)
  return unpack(jax.tree.map(change, pack(tree), *(pack(other) for other in others)), dtypes)


def apart(stacked: Tree) -> list[Tree] | Tree:
  """The layers as arrays of their own, which share the memory of the stack.

  A program that reads layers one by one copies each out of a stack first. Only on one CPU device
  can memory be shared so; elsewhere, and where a leaf is packed, it is the stack itself.
  """
  leaves = jax.tree.leaves(stacked)
  alone = all(len(a.devices()) == 1 and a.dtype.itemsize > 1 for a in leaves)
  if jax.default_backend() != "cpu" or not alone:
    return stacked
  views = [np.asarray(a) for a in leaves]
  where = [_alone(a.sharding) if a.committed else None for a in leaves]
  layers = (jax.device_put([view[at] for view in views], where) for at in range(len(leaves[0])))
  return [jax.tree.unflatten(jax.tree.structure(stacked), layer) for layer in layers]


def _alone(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """The sharding of a slice on the one device of a whole array."""
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec())
  return sharding


def layer(layers: list[Tree] | Tree, at: int) -> Tree:
  """One of the layers, which are stacked or `apart`."""
  return layers[at] if isinstance(layers, list) else each(lambda a: a[at], layers)


def pack(tree: Tree) -> Tree:
  """Every 2-byte float array as uint16 of the same bits; others as they are. Not differentiable."""
  narrow = lambda a: jnp.issubdtype(a.dtype, jnp.floating) and a.dtype.itemsize == 2
  bits = lambda a: jax.lax.bitcast_convert_type(a, jnp.uint16)
  return jax.tree.map(lambda a: bits(a) if narrow(a) else a, tree)


def unpack(tree: Tree, dtypes: Tree) -> Tree:
  """The inverse of `pack`; `dtypes` are those before it."""

  def restore(a, dtype):
    return a if a.dtype == dtype else jax.lax.bitcast_convert_type(a, dtype)

  return jax.tree.map(restore, tree, dtypes)
