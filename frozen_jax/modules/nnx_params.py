"""NNX modules and the nested dicts of arrays that are trained, saved and sharded in their place."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def module_params(module: nnx.Module) -> dict[str, Any]:
  """The parameters of a module as nested dicts."""
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def with_params(create: Callable[[jax.Array], Module], params: dict[str, Any]) -> Module:
  """The module that `create` makes of a random key, with these parameters in place of new ones.

  `create` is traced only, so nothing is initialised. The shapes are those of `params`.
  """
  abstract = nnx.eval_shape(create, jax.random.key(0))
  graph, state = nnx.split(abstract, nnx.Param)[:2]
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graph, state)
