"""Checks of token ids, before a model reads them.

On a device an id beyond the table gives NaN and a negative one another token's row, without a word.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError

IGNORED_LABEL = -100  # what stands for "no target" in labels of transformers


def check_ids(
  ids: Sequence[int] | np.ndarray, vocab_size: int | None, where: str, tokenizer: Any = None
) -> None:
  """Checks the ids of one text.

  Args:
    ids: int [T].
    vocab_size: V, the rows of the model's table; None: the ids are not checked.
    where: names the text, for the message.
    tokenizer: to name the token of the id.

  Raises:
    UserError: an id below 0, or one of V or more; the first is named with its position.
  """
  array = np.asarray(ids)
  if vocab_size is None or not array.size:
    return
  wrong = (array < 0) | (array >= vocab_size)
  if wrong.any():
    position = int(np.argmax(wrong))
    id = int(array[position])
    raise UserError(
      f"{where}: token {position + 1} has the id {id}{_token(tokenizer, id)}, and the model has ids"
      f" from 0 to {vocab_size - 1}; {_advice(id, tokenizer)}"
    )


def _token(tokenizer: Any, id: int) -> str:
  token = tokenizer.convert_ids_to_tokens(id) if tokenizer is not None and id >= 0 else None
  return "" if token is None else f" ({token!r})"


def _advice(id: int, tokenizer: Any) -> str:
  if id == IGNORED_LABEL:
    return f"{id} is the padding of labels: give the tokens themselves, with a mask for padding"
  if tokenizer is not None:
    return "leave this token out of the text, or use the tokenizer that belongs to the model"
  return "use the tokenizer that belongs to the model"
