"""What a step changes: the step's number, the trained tree, the optimizer's state, the key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from frozen_jax.core.types import Tree
from frozen_jax.sharding.hosts import put
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.optimizer import Optimizer


class TrainState(NamedTuple):
  """The only argument that a step donates; whole on every device of the mesh.

  step       int32 scalar, the updates done
  trainable  the trained tree, float32
  opt_state  of the optimizer
  key        random key of the stage; the key of update n is `fold_in(key, n - 1)`, so nothing has
             to be replayed after a resume
  """

  step: jax.Array
  trainable: Tree
  opt_state: Any
  key: jax.Array


def create_state(trainable: Tree, optimizer: Optimizer, key: jax.Array, mesh: Mesh) -> TrainState:
  """The state before the first update: a float32 copy of `trainable`, which the caller keeps."""

  def make(trainable: Tree, key: jax.Array) -> TrainState:
    trainable = jax.tree.map(_master, trainable)
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), jnp.copy(key))

  whole = replicated(mesh)
  trainable, key = put((trainable, key), whole)
  return jax.jit(make, out_shardings=whole)(trainable, key)


def copy_tree(tree: Tree, mesh: Mesh) -> Tree:
  """The same arrays in buffers of their own, which no donation takes away."""
  return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=replicated(mesh))(tree)


def _master(leaf: jax.Array) -> jax.Array:
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  return jnp.array(leaf, jnp.float32 if floating else leaf.dtype, copy=True)
