"""The activations of the MLPs, by their names in model configs."""

import functools
from collections.abc import Callable

import jax

_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "relu": jax.nn.relu,
  "gelu": _exact_gelu,
  "gelu_new": _tanh_gelu,
  "gelu_fast": _tanh_gelu,
  "gelu_pytorch_tanh": _tanh_gelu,
}
