"""Rank classification: of a row's choices the model takes the one it holds the likeliest.

As GPT-3 (Brown et al. 2020) and T0 (Sanh et al. 2022) are evaluated. The prompt is read once for
all choices of its row (`core.types.Method.likelihoods`). How the log-likelihood of a choice is made
comparable to that of a longer one, by name:

  sum      as it is: T0's way, which favours short choices
  tokens   the mean over the choice's tokens: GPT-3's way for most tasks; depends on the tokenizer
  bytes    per byte of its text (UTF-8): does not depend on the tokenizer
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from frozen_jax.core.device import suited
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Method, Prompt, Tree
from frozen_jax.evaluation.generation import QUIET, Answerer, check_length
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.place import constrained, everywhere, make_place
from frozen_jax.sharding.rules import row_groups
from frozen_jax.text.padding import beside, padded, power_of_two

NORMALISATIONS = ("sum", "tokens", "bytes")
AT_ONCE = 2**14  # tokens of one batch, prompts and choices with their padding
_SHORTEST = 16  # prompts are padded to at least so many tokens
_FEWEST = 4  # and what is read of choices to so many, where anything is

# About how many tokens are read in the time that it takes to compile for one more shape.
_COMPILING = {"cpu": 2**9, "gpu": 2**16}


class Question(NamedTuple):
  """One row: what is read, and what may follow it.

  choices: token ids of each choice, as they stand behind the prompt. sizes: how many bytes the text
  of each has. labels: which are right (any of them counts); empty where it is not known.
  """

  prompt: Prompt
  choices: Sequence[Sequence[int]]
  sizes: Sequence[int]
  labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Ranking:
  """chosen: of each row the index of its choice. correct: whether it is right. accuracy: percent of
  rows that are."""

  chosen: list[int]
  correct: list[bool]

  @property
  def accuracy(self) -> float:
    return 100.0 * sum(self.correct) / max(len(self.correct), 1)


def rank(
  questions: Sequence[Question], likelihoods: Sequence[np.ndarray], normalisation: str = "sum"
) -> Ranking:
  """Which choice each row takes, from the log-likelihoods of `choice_likelihoods`; of equals the
  first. Raises UserError for a normalisation that is not known.
  """
  check_normalisation(normalisation)
  chosen = []
  for question, likely in zip(questions, likelihoods, strict=True):
    if normalisation == "tokens":
      likely = likely / [len(choice) for choice in question.choices]
    elif normalisation == "bytes":
      likely = likely / np.asarray(question.sizes)
    chosen.append(int(np.argmax(likely)))
  correct = [best in question.labels for best, question in zip(chosen, questions, strict=True)]
  return Ranking(chosen, correct)


def check_normalisation(name: str) -> None:
  """UserError for a normalisation that is not known."""
  if name not in NORMALISATIONS:
    raise UserError(f"normalisation {name!r} is not known; give one of {', '.join(NORMALISATIONS)}")


def choice_likelihoods(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  questions: Sequence[Question],
  batch_size: int = 32,
  at_once: int = AT_ONCE,
) -> list[np.ndarray]:
  """The log-likelihood of each row's choices in nats, summed over their tokens: float32 [C] a row.

  A batch has at most `batch_size` rows and `at_once` tokens (but at least as many rows as the mesh
  has parts to split them to). Raises UserError for a row without choices or with an empty one, for
  a prompt that leaves the longest choice no room in the model's context, and where a likelihood is
  not a number.
  """
  taken = method.taken(trainable, frozen)
  for number, question in enumerate(questions, start=1):
    _check(f"row {number}", question, taken, lm.config.context)
  whole = everywhere(lm.mesh)
  groups = 1 if lm.mesh is None else row_groups(lm.mesh)
  place = make_place(lm.mesh)
  results: list[np.ndarray] = [np.zeros(0, np.float32) for _ in questions]
  hidden = len(questions) <= 1 or not is_first_host()
  with tqdm(total=len(questions), desc="choices", disable=hidden, delay=QUIET, leave=False) as bar:
    for rows, prompts, choices, mask in _batches(questions, batch_size, at_once, groups):
      batch = place(prompts | {"choices": choices, "choice_mask": mask})
      found = np.asarray(_likelihoods(method, trainable, frozen, batch, out_sharding=whole))
      for row, likely in zip(rows, found, strict=False):
        results[row] = likely[: len(questions[row].choices)]
        if np.isnan(results[row]).any():
          raise UserError(
            f"row {row + 1}: the likelihood of a choice is not a number; the weights are damaged or"
            " training has diverged: lower the learning rate"
          )
      bar.update(len(rows))
  return results


@functools.partial(jax.jit, static_argnames=("method", "out_sharding"))
def _likelihoods(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  batch: dict[str, jax.Array],
  out_sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  prompts: Any = {name: a for name, a in batch.items() if name not in ("choices", "choice_mask")}
  found = method.likelihoods(trainable, frozen, prompts, batch["choices"], batch["choice_mask"])
  return constrained(found, out_sharding)


def _check(what: str, question: Question, taken: int, context: int) -> None:
  if not question.choices:
    raise UserError(f"{what} has no choices; give at least one")
  for index, choice in enumerate(question.choices, start=1):
    if not len(choice):
      raise UserError(f"{what}: choice {index} has no tokens; leave it out or give it a text")
  longest = max(map(len, question.choices))
  check_length(what, len(question.prompt.tokens), longest, taken, context)


def _batches(
  questions: Sequence[Question], batch_size: int, at_once: int, multiple: int = 1
) -> Iterator[tuple[list[int], dict[str, np.ndarray], np.ndarray, np.ndarray]]:
  """Yields (indices of the rows, their prompts, choices [B, C, M], their mask).

  Prompts are padded on the left. The rows of a shape are dealt to batches of one size, a `multiple`
  of what the mesh splits; the last rows of a batch may be empty.
  """
  for shape, members in _by_shape(questions).items():
    most = max(min(batch_size, at_once // (shape.width + shape.count * shape.length)), 1)
    size = -(-len(members) // -(-len(members) // most))
    size = -(-size // multiple) * multiple
    for start in range(0, len(members), size):
      rows = members[start : start + size]
      prompts = [questions[index].prompt for index in rows]
      tokens, mask = padded([p.tokens for p in prompts], shape.width, size, left=True)
      choices, real = np.zeros((2, size, shape.count, shape.length), np.int32)
      for place, index in enumerate(rows):
        choices[place], real[place] = padded(questions[index].choices, shape.length, shape.count)
      yield rows, {"tokens": tokens, "mask": mask, **beside(prompts, size)}, choices, real


class _Shape(NamedTuple):
  """What rows are padded to: T, C and M."""

  width: int
  count: int
  length: int

  def read(self) -> int:
    """Tokens of a row that go through the model: the last of a choice is only predicted."""
    return self.width + self.count * (self.length - 1)


def _by_shape(questions: Sequence[Question]) -> dict[_Shape, list[int]]:
  """The rows that are padded to each shape: few shapes, and little padding.

  From the smallest on, the rows of a shape go over to the next larger one that holds them, as long
  as the padding costs less time than compiling one more shape would.
  """
  shapes: dict[_Shape, list[int]] = {}
  for index, question in enumerate(questions):
    longest = max(map(len, question.choices))
    width = _size(len(question.prompt.tokens), _SHORTEST)
    length = 1 if longest == 1 else 1 + _size(longest - 1, _FEWEST)
    shapes.setdefault(_Shape(width, len(question.choices), length), []).append(index)
  worth = suited(_COMPILING)
  for shape in sorted(shapes, key=_Shape.read):
    larger = [
      s for s in shapes if s != shape and all(a >= b for a, b in zip(s, shape, strict=True))
    ]
    if larger:
      other = min(larger, key=_Shape.read)
      if len(shapes[shape]) * (other.read() - shape.read()) < worth:
        shapes[other] += shapes.pop(shape)
  return shapes


def _size(count: int, least: int) -> int:
  """The smallest of 2, 3, 4, 6, 8, 12, 16, 24 ... that is neither below `count` nor `least`."""
  whole = power_of_two(count, least)
  return whole * 3 // 4 if count <= whole * 3 // 4 and least <= whole * 3 // 4 else whole
