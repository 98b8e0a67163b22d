"""Rows of an embedding table, split over the mesh."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import stack
from frozen_jax.backbones.quantized import Quantized
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain, constrain_rows


def look_up(
  table: Float[HostOrDevice, "V width"] | Quantized, ids: Int[HostOrDevice, "*B T"], trained: bool
) -> Float[Array, "*B T width"]:
  """The rows of the table at these ids; with `trained` the table gets a gradient.

  The rows of a batch end up split over `data` and `fsdp`. On the way `fsdp` splits the features, as
  it does those of the table: so neither table nor batch is whole on a device.
  """
  x = jnp.take(jnp.asarray(table), ids, axis=0) if trained else stack.take(table, ids)
  between = (None,) * (x.ndim - 2)
  return constrain_rows(constrain(x, "data_batch", *between, "embed"))
