"""Counts the FLOPs of a function before XLA's optimisation, from shapes alone.

Nothing has to be compiled; optimisation changed the count by less than 1% where the two were
compared. XLA counts the body of a loop once, however many iterations it has, so every scan is
unrolled. Tracing a deep model would then take long; but a model of L equal layers costs a + b * L,
and two shallow models give a and b (`by_layers`).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

SHALLOW = 2  # layers of the smaller model: the first may differ (it has no gradient to pass on)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
  """The FLOPs of one call, given pytrees of `jax.ShapeDtypeStruct`s; nothing is compiled.

  A multiplication and an addition count as two. Raises ValueError for a while loop, whose number of
  iterations depends on computed values.
  """
  leaves, treedef = jax.tree.flatten(arguments)
  traced = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(treedef, flat)))(*leaves)
  program = jaxpr_as_fun(_unrolled(traced))
  return jax.jit(program).lower(*leaves).cost_analysis()["flops"]


def by_layers(count: Callable[..., float], *layers: int) -> float:
  """The FLOPs at these depths, extrapolated from shallow models.

  count: FLOPs as a function of the depths of the stacks (an LM's, an encoder's), linear in each.
  """
  shallow = [SHALLOW] * len(layers)
  base = count(*shallow)
  total = base
  for index, depth in enumerate(layers):
    deeper = [*shallow[:index], SHALLOW + 1, *shallow[index + 1 :]]
    total += (depth - SHALLOW) * (count(*deeper) - base)
  return total


def _unrolled(value: Any) -> Any:
  """A traced program, or a parameter of one of its equations, with every scan unrolled."""
  if isinstance(value, ClosedJaxpr):
    return value.replace(jaxpr=_unrolled(value.jaxpr))
  if isinstance(value, Jaxpr):
    return value.replace(eqns=[_unrolled_equation(equation) for equation in value.eqns])
  if type(value) in (tuple, list):
    return type(value)(_unrolled(part) for part in value)
  return value


def _unrolled_equation(equation: Any) -> Any:
  name = equation.primitive.name
  if name == "while":
    raise ValueError(
      "the FLOPs of a while loop are not known: its iterations depend on computed values"
    )
  params = {key: _unrolled(value) for key, value in equation.params.items()}
  if name == "scan":
    params["unroll"] = max(params["length"], 1)
  return equation.replace(params=params)
