"""Running a model's stacked layers as one scan; on CPUs with 16-bit floats carried as integers.

XLA's CPU backend cannot slice or update bfloat16 arrays: it widens the whole stack to float32
first, which for the weights costs a copy of the model in every pass. 16-bit integers of the same
bits are sliced directly. And it moves what does not change out of a loop, as a copy that stays,
unless a barrier keeps it in. Programs for other platforms have neither integers nor barriers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.quantized import Quantized, dequantize
from frozen_jax.core.remat import REMAT_POLICIES
from frozen_jax.core.types import HostOrDevice, Tree
from frozen_jax.sharding.activations import platform_of


class SavedValues(NamedTuple):
  """What a layer saves besides its input: named values, and whether these wait on the host.

  input_dtype: in which the input is kept, where nothing else is; None: as it is.
  """

  names: tuple[str, ...]
  on_host: bool = False
  input_dtype: jnp.dtype | None = None


def saved_values(remat: str, names: tuple[str, ...], like: Array) -> SavedValues:
  """What a policy of `core.remat` saves of a layer that names these values.

  like: a weight. Where it is bfloat16 "full" keeps inputs so; not on CPUs, for the reason above.

  Raises:
    ValueError: an unknown policy.
  """
  if remat not in REMAT_POLICIES:
    raise ValueError(f"remat is {remat!r}; it is one of {', '.join(REMAT_POLICIES)}")
  saved = {"full": (), "attention": tuple(name for name in names if name == "attention")}
  narrow = remat == "full" and like.dtype == jnp.bfloat16 and platform_of(like) != "cpu"
  return SavedValues(saved.get(remat, names), remat == "offload", like.dtype if narrow else None)


def scan(
  body: Callable[[Any, Tree], tuple[Any, Tree]],
  carry: Any,
  stacked: Tree,
  saved: SavedValues | None = None,
  trained: Tree = None,
  layers: range | None = None,
) -> tuple[Any, Tree]:
  """`lax.scan` of body(carry, slices) -> (carry, outputs) over trees of [L, ...] arrays.

  `layers`: which slices are used, one after the other; None: all. `trained` has those alone.

  No gradient flows to `stacked`: it is frozen, or a cache. If there is a `trained` tree (float32,
  [L, ...] too), the body gets (slices, slices of it) and gradients flow to it. For the backward
  pass each step saves its carry and the values that `saved` names (see `checkpoint_name`) and
  recomputes the rest; None saves everything.
  """

  def step(carry, scanned):
    index, trained_slices = scanned
    slices = slices_at(stacked, index)
    carry, outputs = body(carry, slices if trained is None else (slices, trained_slices))
    output_dtypes.append(jax.tree.map(lambda a: a.dtype, outputs))
    return carry, pack(outputs)

  output_dtypes: list[Tree] = []
  layers = range(jax.tree.leaves(stacked)[0].shape[0]) if layers is None else layers
  scanned = (jnp.arange(layers.start, layers.stop), trained)
  if saved is not None and saved.input_dtype is not None:
    carry, outputs = _scan_keeping(step, carry, scanned, saved.input_dtype)
  else:
    carry, outputs = jax.lax.scan(_saving_only(step, saved), carry, scanned)
  return carry, unpack(outputs, output_dtypes[-1])


def _scan_keeping(
  step: Callable, carry: Float[Array, "..."], scanned: tuple, dtype: jnp.dtype
) -> tuple[Float[Array, "..."], Tree]:
  """`lax.scan` whose backward pass has only the carries, in this dtype, and recomputes the rest.

  Of the forward pass nothing is rounded. No gradients flow to what the step closes over, nor from
  its outputs.
  """
  # What the step closes over is an argument: `custom_vjp` may trace its rules after that is gone.
  first = jax.tree.map(lambda a: a[0], scanned)
  traced, shapes = jax.make_jaxpr(step, return_shape=True)(carry, first)

  def pure_step(constants, carry, slices):
    run = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))
    return jax.tree.unflatten(jax.tree.structure(shapes), run(*jax.tree.leaves((carry, slices))))

  @jax.custom_vjp
  def run(constants, carry, scanned):
    return jax.lax.scan(functools.partial(pure_step, constants), carry, scanned)

  def forward(constants, carry, scanned):
    def keeping(carry, slices):
      after, outputs = pure_step(constants, carry, slices)
      return after, (outputs, carry.astype(dtype))

    after, (outputs, kept) = jax.lax.scan(keeping, carry, scanned)
    return (after, outputs), (constants, kept, scanned)

  def backward(residuals, cotangents):
    constants, kept, (index, trained) = residuals

    def back(cotangent, given):
      kept, index, trained = given
      again = lambda carry, trained: pure_step(constants, carry, (index, trained))[0]
      return jax.vjp(again, kept.astype(cotangent.dtype), trained)[1](cotangent)

    d_carry, d_trained = jax.lax.scan(back, cotangents[0], (kept, index, trained), reverse=True)
    return None, d_carry, (None, d_trained)

  run.defvjp(forward, backward)
  return run(traced.consts, carry, scanned)


def scan_trained(
  body: Callable[[Any, Tree], tuple[Any, Tree]],
  carry: Any,
  stacked: Tree,
  saved: SavedValues | None = None,
  layers: range | None = None,
) -> tuple[Any, Tree]:
  """`scan` over layers that are trained themselves: gradients flow to all of `stacked`.

  If everything is saved the steps are unrolled: stacking what each step saves, and slicing it out
  again, would cost a third of a training step.
  """
  if layers is not None:
    stacked = jax.tree.map(lambda a: a[layers.start : layers.stop], stacked)
  return jax.lax.scan(_saving_only(body, saved), carry, stacked, unroll=saved is None)


def slices_at(stacked: Tree, index: Int[HostOrDevice, ""]) -> Tree:
  """The slices of [L, ...] arrays at an index that a loop counts, without widening a stack."""
  dtypes = jax.tree.map(lambda a: a.dtype, stacked)
  index, arrays = keep_in_loop(index, stacked)
  at_index = lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False)
  return unpack(jax.tree.map(at_index, pack(arrays)), dtypes)


def _saving_only(step: Callable, saved: SavedValues | None) -> Callable:
  """The step of a scan, which saves only named values for the backward pass; None: everything."""
  if saved is None:
    return step
  policies = jax.checkpoint_policies
  policy = policies.save_only_these_names(*saved.names)
  if saved.on_host:
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(saved.names),
      offload_src="device",
      offload_dst="pinned_host",
    )
  return jax.checkpoint(step, prevent_cse=False, policy=policy)


def take(
  table: Float[Array, "..."] | Quantized, rows: Int[HostOrDevice, "..."], axis: int = 0
) -> Float[Array, "..."]:
  """`jnp.take` of a frozen table, without widening it (see above).

  Of a quantised table only the rows that are taken are dequantised.
  """
  rows, table = keep_in_loop(rows, table)
  return dequantize(map_arrays(lambda a: jnp.take(a, rows, axis=axis), table))


def keep_in_loop(index: Any, arrays: Tree) -> tuple[Any, Tree]:
  """Both as they are; on a CPU XLA must not compute what is made of the arrays before the loop."""
  leaves = jax.tree.leaves(arrays)
  if not leaves or platform_of(leaves[0]) != "cpu":
    return index, arrays
  return jax.lax.optimization_barrier((index, arrays))


def map_arrays(change: Callable[..., Array], tree: Tree, *others: Tree) -> Tree:
  """`jax.tree.map` of a function that moves numbers and computes none, without widening them.

  With `others` of the same structure the function gets one array of each.
  """
  dtypes = jax.tree.map(lambda a: a.dtype, tree)
  return unpack(jax.tree.map(change, pack(tree), *(pack(other) for other in others)), dtypes)


def unstack(stacked: Tree) -> list[Tree] | Tree:
  """The layers as separate arrays, which share the memory of the stack.

  A program that reads layers one by one first copies each out of a stack. Memory can be shared on
  one CPU device only; elsewhere, and if a leaf is packed in less than bytes, the stack itself is
  returned.
  """
  leaves = jax.tree.leaves(stacked)
  can_share = all(len(a.devices()) == 1 and a.dtype.itemsize > 1 for a in leaves)
  if jax.default_backend() != "cpu" or not can_share:
    return stacked
  views = [np.asarray(a) for a in leaves]
  shardings = [_slice_sharding(a.sharding) if a.committed else None for a in leaves]
  layers = (
    jax.device_put([view[index] for view in views], shardings) for index in range(len(leaves[0]))
  )
  return [jax.tree.unflatten(jax.tree.structure(stacked), layer) for layer in layers]


def _slice_sharding(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """The sharding of a slice of an array that lies on one device."""
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec())
  return sharding


def layer(layers: list[Tree] | Tree, index: int) -> Tree:
  """One of the layers, which are stacked or a list (`unstack`)."""
  return layers[index] if isinstance(layers, list) else map_arrays(lambda a: a[index], layers)


def pack(tree: Tree) -> Tree:
  """On a CPU, every 2-byte float array as uint16 of the same bits. Not differentiable there.

  Other arrays, and those of programs for other platforms, are unchanged.
  """
  is_2_byte_float = lambda a: jnp.issubdtype(a.dtype, jnp.floating) and a.dtype.itemsize == 2
  bits = lambda a: jax.lax.bitcast_convert_type(a, jnp.uint16)
  packed = lambda a: is_2_byte_float(a) and platform_of(a) == "cpu"
  return jax.tree.map(lambda a: bits(a) if packed(a) else a, tree)


def unpack(tree: Tree, dtypes: Tree) -> Tree:
  """The inverse of `pack`; `dtypes`: the tree of dtypes before it."""

  def restore(a, dtype):
    return a if a.dtype == dtype else jax.lax.bitcast_convert_type(a, dtype)

  return jax.tree.map(restore, tree, dtypes)
