"""The rows of a batch as one row, of the positions for which a layer has something to compute.

All of a layer but attention works position by position. So the positions of a prompt that the rows
share come once, before those of all rows, and padding need not come at all ("unpadding"): B rows of
T tokens, of which C are real, after P shared vectors are P + C positions for every product, where
rows that each have the prompt would be B * (P + T). Only attention tells prompt and rows apart
(`JoinedRows.split`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from frozen_jax.core.types import HostOrDevice, Size


class JoinedRows(NamedTuple):
  """Which positions of a prompt and of rows [B, T] stand in the joined row, in this order.

  num_prompt  P, of the prompt that comes first; 0: none
  rows        B
  length      T
  real        index in B * T of each position that is joined, rising; then any from B * T on, for
              none. None: all are joined
  place       of each of the B * T positions its place among the joined ones, or C for none; None
  """

  num_prompt: int
  rows: Size
  length: Size
  real: Int[Array, "C"] | None = None
  place: Int[Array, "_"] | None = None

  def join(
    self, prompt: Shaped[Array, "1 P *rest"] | None, rows: Shaped[Array, "B T *rest"]
  ) -> Shaped[Array, "1 N *rest"]:
    """The positions of the prompt and then those of the rows, N = P + C, as one row."""
    joined = rows.reshape(-1, *rows.shape[2:])
    if self.real is not None:
      joined = _rearrange(joined, self.real, self.place)
    joined = joined[None]
    return joined if prompt is None else jnp.concatenate([prompt, joined], axis=1)

  def split(
    self, joined: Shaped[Array, "1 N *rest"]
  ) -> tuple[Shaped[Array, "1 P *rest"] | None, Shaped[Array, "B T *rest"]]:
    """The inverse of `join`; positions that were left out are zeros."""
    prompt = joined[:, : self.num_prompt] if self.num_prompt else None
    rows = joined[0, self.num_prompt :]
    if self.real is not None:
      rows = _rearrange(rows, self.place, self.real)
    return prompt, rows.reshape(self.rows, self.length, *joined.shape[2:])


def joined_rows(
  num_prompt: int, mask: Int[HostOrDevice, "B T"], real: Int[HostOrDevice, "C"] | None
) -> JoinedRows:
  """Which positions are joined; real: see `JoinedRows.real`, at least all where the mask is 1."""
  if real is None:
    return JoinedRows(num_prompt, *mask.shape)
  is_real = jnp.asarray(mask).reshape(-1) > 0
  place = jnp.where(is_real, jnp.cumsum(is_real) - 1, real.shape[0])
  return JoinedRows(num_prompt, *mask.shape, jnp.asarray(real), place)


def real_positions(mask: Int[HostOrDevice, "B T"], size: int) -> Int[Array, "C"]:
  """`JoinedRows.real` of a mask, `size` of them."""
  return jnp.flatnonzero(jnp.asarray(mask), size=size, fill_value=mask.size)


@jax.custom_vjp
def _rearrange(
  x: Shaped[Array, "M *rest"], index: Int[Array, "N"], inverse: Int[Array, "M"]
) -> Shaped[Array, "N *rest"]:
  """x[index], zeros where an index is beyond x; inverse: where each of x went.

  A gather, as is its derivative: XLA's CPU backend would scatter one position after the other.
  """
  del inverse
  return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _rearrange_forward(x, index, inverse):
  return _rearrange(x, index, inverse), (index, inverse)


def _rearrange_backward(indices, cotangent):
  index, inverse = indices
  return _rearrange(cotangent, inverse, index), None, None


_rearrange.defvjp(_rearrange_forward, _rearrange_backward)
