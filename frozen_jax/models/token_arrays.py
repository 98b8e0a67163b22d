"""What a user gives to a frozen model, checked before it goes to the devices.

Within `jax.jit` the values are not known: there only shapes are checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.text.token_ids import check_ids


def checked_ids(token_ids: Any, mask: Any, vocab_size: int, what: str = "row") -> jax.Array:
  """Token ids [B, T] as an array, all of them in the model's table.

  Padding (mask 0) may be of any id; the id 0 is read in place of one that is in no table.

  Args:
    token_ids: int [B, T]. mask: [B, T], 1 for real tokens; None: all are real.
    vocab_size: V.
    what: a row of the array, for messages.

  Raises:
    UserError: an id that is not from 0 to V - 1, no whole numbers, rows of different lengths or
      without any id, no rows, or a mask of another shape.
  """
  ids = _known(token_ids, "token ids")
  shape = np.shape(token_ids if ids is None else ids)
  if len(shape) != 2 or not all(shape):
    raise UserError(
      f"token ids are rows of texts, [B, T] with at least one token, and these are {list(shape)};"
      " give one text as [[1, 2, 3]]"
    )
  if ids is None:
    return jnp.asarray(token_ids)
  if ids.dtype.kind not in "iu":
    raise UserError(f"token ids are whole numbers, and these are {ids.dtype.name}; encode the text")
  real = _known(mask, "the mask")
  if real is not None and real.shape != ids.shape:
    raise UserError(
      f"the mask is {list(real.shape)} and the token ids are {list(ids.shape)}; give a mask of"
      " their shape"
    )
  outside = (ids < 0) | (ids >= vocab_size)
  if not outside.any():
    return jnp.asarray(token_ids if isinstance(token_ids, jax.Array) else ids.astype(np.int32))
  padding = np.zeros_like(outside) if real is None else real == 0
  for row in np.flatnonzero((outside & ~padding).reshape(-1, ids.shape[-1]).any(axis=-1)):
    read = np.where(padding, 0, ids).reshape(-1, ids.shape[-1])[row]
    check_ids(read, vocab_size, f"{what} {row + 1}")
  return jnp.asarray(np.where(outside, 0, ids).astype(np.int32))


def check_context(shape: tuple[int, ...], mask: Any, context: int) -> None:
  """Checks that the texts of a batch [B, T, ...] fit the model's context; padding may exceed it.

  Raises:
    UserError: a text has more real tokens than the context has positions.
  """
  if len(shape) < 2 or shape[1] <= context:
    return
  if mask is None:
    longest, row = shape[1], 0
  else:
    known = _known(mask, "the mask")
    if known is None:
      return
    counts = (known > 0).sum(axis=-1)
    row = int(np.argmax(counts))
    longest = int(counts[row])
  if longest > context:
    raise UserError(
      f"row {row + 1} has {longest} tokens, which do not fit the model's context of {context};"
      " shorten it"
    )


def _known(values: Any, what: str) -> np.ndarray | None:
  """The values as numbers of this process; None where they are traced, absent or elsewhere."""
  if values is None or isinstance(values, jax.core.Tracer):
    return None
  if isinstance(values, jax.Array) and not values.is_fully_addressable:
    return None
  try:
    return np.asarray(values)
  except ValueError:
    raise UserError(f"the rows of {what} differ in length; pad them, and give a mask") from None
