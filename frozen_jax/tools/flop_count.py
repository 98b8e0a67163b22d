"""Counts the FLOPs of a function as it is handed to XLA, from shapes alone.

What XLA's optimisation would spare or add is not in it (within 1% where the two were compared), so
nothing has to be compiled. XLA counts the body of a loop once, however often it turns, so every
scan is laid out in full. A deep model would then be traced for long; but a model of L equal layers
costs a + b * L, and two shallow ones give a and b (`by_layers`).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

SHALLOW = 2  # layers of the smaller model: the first may differ (it has no gradient to pass on)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
  """The FLOPs of one call, given pytrees of `jax.ShapeDtypeStruct`s; nothing is compiled.

  A multiplication and an addition are two. Raises ValueError for a loop that ends only on what it
  computes.
  """
  leaves, form = jax.tree.flatten(arguments)
  traced = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(form, flat)))(*leaves)
  program = jaxpr_as_fun(_laid_out(traced))
  return jax.jit(program).lower(*leaves).cost_analysis()["flops"]


def by_layers(count: Callable[..., float], *layers: int) -> float:
  """What a count of FLOPs would be at these depths, measured at small ones.

  count: a function of the depths of the stacks (an LM's, an encoder's), in which it is linear.
  """
  low = [SHALLOW] * len(layers)
  least = count(*low)
  total = least
  for place, depth in enumerate(layers):
    deeper = [*low[:place], SHALLOW + 1, *low[place + 1 :]]
    total += (depth - SHALLOW) * (count(*deeper) - least)
  return total


def _laid_out(value: Any) -> Any:
  """A traced program, or a parameter of one of its steps, with every scan laid out in full."""
  if isinstance(value, ClosedJaxpr):
    return value.replace(jaxpr=_laid_out(value.jaxpr))
  if isinstance(value, Jaxpr):
    return value.replace(eqns=[_step(equation) for equation in value.eqns])
  if type(value) in (tuple, list):
    return type(value)(_laid_out(part) for part in value)
  return value


def _step(equation: Any) -> Any:
  name = equation.primitive.name
  if name == "while":
    raise ValueError("a loop that ends on what it computes has no number of FLOPs")
  params = {key: _laid_out(value) for key, value in equation.params.items()}
  if name == "scan":
    params["unroll"] = max(params["length"], 1)
  return equation.replace(params=params)
