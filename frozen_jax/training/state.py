"""The training state: the number of updates, the trained tree, the optimizer's state, the key."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from frozen_jax.core.types import Tree
from frozen_jax.sharding.hosts import global_device_put
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.optimizer import Optimizer


class TrainState(NamedTuple):
  """The only argument that a step donates; replicated on every device of the mesh.

  step       int32 scalar, the updates done
  trainable  the trained tree, float32
  opt_state  of the optimizer
  key        random key of the stage; the key of update n is `fold_in(key, n - 1)`, so nothing has
             to be replayed after a resume
  """

  step: Int[Array, ""]
  trainable: Tree
  opt_state: Any
  key: Key[Array, ""]


def create_state(
  trainable: Tree, optimizer: Optimizer, key: Key[Array, ""], mesh: Mesh
) -> TrainState:
  """The state before the first update: a float32 copy of `trainable`, which stays valid."""

  sharding = replicated(mesh)
  trainable, key = global_device_put((trainable, key), sharding)
  create = functools.partial(initial_state, optimizer)
  return jax.jit(create, out_shardings=sharding)(trainable, key)


def initial_state(optimizer: Optimizer, trainable: Tree, key: Key[Array, ""]) -> TrainState:
  """`create_state` as a function that JAX may trace: the placement is left to it."""
  trainable = jax.tree.map(_float32_copy, trainable)
  return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), jnp.copy(key))


def copy_tree(tree: Tree, mesh: Mesh) -> Tree:
  """The same arrays in new buffers, which a donation of the old ones leaves intact."""
  return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=replicated(mesh))(tree)


def _float32_copy(leaf: jax.Array) -> jax.Array:
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  return jnp.array(leaf, jnp.float32 if floating else leaf.dtype, copy=True)
