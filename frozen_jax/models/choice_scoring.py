"""The log-likelihood of each choice of a row under a tuned model, in few batch shapes.

The prompt is read once for all choices of its row (`core.types.Method.log_likelihoods`).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from frozen_jax.core.device import per_backend
from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import Base, Method, Prompt, Tree
from frozen_jax.models.generation import PROGRESS_DELAY, Model, check_length
from frozen_jax.sharding.batch import shard_batch, with_sharding_constraint
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.rules import replicated, row_groups
from frozen_jax.text.padding import extra_inputs, pad_sequences, power_of_two
from frozen_jax.text.token_ids import check_ids

MAX_TOKENS = 2**14  # of one batch, prompts and choices with their padding
_MIN_PROMPT = 16  # prompts are padded to at least so many tokens
_MIN_CHOICE = 4  # and what is read of choices to so many, where anything is
_MIN_CHOICES = 4  # rows whose choices have one token each are filled up to so many choices

# About how many tokens are read in the time that it takes to compile for one more shape.
_COMPILING = {"cpu": 2**9, "gpu": 2**16}


class ChoiceQuestion(NamedTuple):
  """A row: what is read, and what may follow it.

  choices: token ids of each choice, as they stand after the prompt. sizes: how many bytes the text
  of each has. labels: which are right (any of them counts); empty where it is not known.
  """

  prompt: Prompt
  choices: Sequence[Sequence[int]]
  sizes: Sequence[int]
  labels: Sequence[int] = ()


def choice_log_likelihoods(
  model: Model,
  questions: Sequence[ChoiceQuestion],
  batch_size: int = 32,
  max_tokens: int = MAX_TOKENS,
) -> list[np.ndarray]:
  """The log-likelihood of each row's choices in nats, summed over their tokens: float32 [A] a row.

  A batch has at most `batch_size` rows and `max_tokens` tokens (but at least as many rows as the
  mesh has parts to split them to). Raises UserError for a row without choices or with an empty one,
  for a prompt that leaves the longest choice no room in the model's context, for an id that the
  model does not have, and where a likelihood is not a number.
  """
  lm, method, trained, frozen = model.lm, model.method, model.trained, model.frozen
  num_virtual_tokens = method.num_virtual_tokens(trained, frozen)
  for number, question in enumerate(questions, start=1):
    _check_choices(f"row {number}", question, num_virtual_tokens, lm)
  groups = 1 if lm.mesh is None else row_groups(lm.mesh)
  results: list[np.ndarray] = [np.zeros(0, np.float32) for _ in questions]
  hidden = len(questions) <= 1 or not is_first_host()
  with ProgressBar(
    total=len(questions), desc="choices", disable=hidden, delay=PROGRESS_DELAY, leave=False
  ) as bar:
    for rows, prompts, choices, mask in _batches(questions, batch_size, max_tokens, groups):
      batch = shard_batch(prompts | {"choices": choices, "choice_mask": mask}, lm.mesh)
      values = np.asarray(
        _log_likelihoods(method, trained, frozen, batch, out_sharding=replicated(lm.mesh))
      )
      for row, of_choices in zip(rows, values, strict=False):
        results[row] = of_choices[: len(questions[row].choices)]
        if np.isnan(results[row]).any():
          raise UserError(
            f"row {row + 1}: the likelihood of a choice is not a number; the weights are damaged or"
            " training has diverged: lower the learning rate"
          )
      bar.update(len(rows))
  return results


@functools.partial(jax.jit, static_argnames=("method", "out_sharding"))
def _log_likelihoods(
  method: Method,
  trained: Tree,
  frozen: Tree,
  batch: dict[str, jax.Array],
  out_sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  prompts: Any = {name: a for name, a in batch.items() if name not in ("choices", "choice_mask")}
  values = method.log_likelihoods(trained, frozen, prompts, batch["choices"], batch["choice_mask"])
  return with_sharding_constraint(values, out_sharding)


def _check_choices(what: str, question: ChoiceQuestion, num_virtual_tokens: int, lm: Base) -> None:
  if not question.choices:
    raise UserError(f"{what} has no choices; give at least one")
  for index, choice in enumerate(question.choices, start=1):
    if not len(choice):
      raise UserError(f"{what}: choice {index} has no tokens; leave it out or give it a text")
  longest = max(map(len, question.choices))
  check_length(what, len(question.prompt.tokens), longest, num_virtual_tokens, lm.config.context)
  check_ids(question.prompt.tokens, lm.config.vocab_size, what, lm.tokenizer)
  for index, choice in enumerate(question.choices, start=1):
    check_ids(choice, lm.config.vocab_size, f"{what}, choice {index}", lm.tokenizer)


def _batches(
  questions: Sequence[ChoiceQuestion], batch_size: int, max_tokens: int, multiple: int = 1
) -> Iterator[tuple[list[int], dict[str, np.ndarray], np.ndarray, np.ndarray]]:
  """Yields (indices of the rows, their prompts, choices [B, A, M], their mask).

  Prompts are padded on the left. The rows of a shape are dealt to batches of one size, a `multiple`
  of what the mesh splits; the last rows of a batch may be empty.
  """
  for shape, members in _by_shape(questions).items():
    most = max(min(batch_size, max_tokens // (shape.width + shape.count * shape.length)), 1)
    size = -(-len(members) // -(-len(members) // most))
    size = -(-size // multiple) * multiple
    for start in range(0, len(members), size):
      rows = members[start : start + size]
      prompts = [questions[index].prompt for index in rows]
      tokens, mask = pad_sequences([p.tokens for p in prompts], shape.width, size, left=True)
      choices, real = np.zeros((2, size, shape.count, shape.length), np.int32)
      for row, index in enumerate(rows):
        choices[row], real[row] = pad_sequences(questions[index].choices, shape.length, shape.count)
      yield rows, {"tokens": tokens, "mask": mask, **extra_inputs(prompts, size)}, choices, real


class _Shape(NamedTuple):
  """What rows are padded to: T, A and M."""

  width: int
  count: int
  length: int

  def tokens_read(self) -> int:
    """Tokens of a row that go through the model: the last of a choice is only predicted."""
    return self.width + self.count * (self.length - 1)

  def filled(self) -> "_Shape":
    """With one of few counts where nothing of the choices is read, so that more cost nothing."""
    count = power_of_two(self.count, _MIN_CHOICES) if self.length == 1 else self.count
    return self._replace(count=count)


def _by_shape(questions: Sequence[ChoiceQuestion]) -> dict[_Shape, list[int]]:
  """The rows that are padded to each shape: few shapes, and little padding.

  From the smallest on, the rows of a shape go over to the next larger one that holds them, as long
  as the padding costs less time than compiling one more shape would.
  """
  shapes: dict[_Shape, list[int]] = {}
  for index, question in enumerate(questions):
    longest = max(map(len, question.choices))
    width = _bucket_size(len(question.prompt.tokens), _MIN_PROMPT)
    length = 1 if longest == 1 else 1 + _bucket_size(longest - 1, _MIN_CHOICE)
    shapes.setdefault(_Shape(width, len(question.choices), length), []).append(index)
  limit = per_backend(_COMPILING)
  for shape in sorted(shapes, key=_Shape.tokens_read):
    larger = [
      s for s in shapes if s != shape and all(a >= b for a, b in zip(s, shape, strict=True))
    ]
    if larger:
      other = min(larger, key=_Shape.tokens_read)
      if len(shapes[shape]) * (other.tokens_read() - shape.tokens_read()) < limit:
        shapes[other] += shapes.pop(shape)
  filled: dict[_Shape, list[int]] = {}
  for shape, members in shapes.items():
    filled.setdefault(shape.filled(), []).extend(members)
  return filled


def _bucket_size(count: int, least: int) -> int:
  """The smallest of 2, 3, 4, 6, 8, 12, 16, 24 ... that is neither below `count` nor `least`."""
  whole = power_of_two(count, least)
  return whole * 3 // 4 if count <= whole * 3 // 4 and least <= whole * 3 // 4 else whole
