"""Texts in, texts out: tokenising, batching and the decoding of a method's continuations."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Method, Tree
from frozen_jax.decoding.generate import cut_at_end, generate
from frozen_jax.decoding.prompts import left_padded
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.place import make_place
from frozen_jax.sharding.rules import replicated

_QUIET = 5  # seconds before a progress bar shows


class Answerer(Base, Protocol):
  """What generation needs of the frozen LM besides its weights."""

  @property
  def mesh(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to continue: at most `max_new_tokens`; greedy at temperature 0; `seed` drives sampling."""

  max_new_tokens: int
  temperature: float = 0.0
  num_samples: int = 1
  seed: int = 0


def generate_ids(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Sequence[int]],
  sampling: Sampling,
  batch_size: int = 32,
) -> list[list[int]]:
  """Continues prompts of token ids; returns the new ids of each, before the end token.

  Each prompt has a random key of its own (seed and index), so its sample does not depend on the
  batch it falls into. Raises UserError for a prompt that leaves no room in the model's context.
  """
  for number, prompt in enumerate(prompts, start=1):
    _check_length(number, len(prompt), sampling.max_new_tokens, lm.config.context)
  ends = _end_ids(lm.tokenizer)
  whole = None if lm.mesh is None else replicated(lm.mesh)
  place = make_place(lm.mesh)
  keys = jax.random.split(jax.random.key(sampling.seed), max(len(prompts), 1))
  results: list[list[int]] = [[] for _ in prompts]
  hidden = len(prompts) <= 1 or not is_first_host()
  with tqdm(total=len(prompts), desc="generate", disable=hidden, delay=_QUIET, leave=False) as bar:
    for rows, tokens, mask in left_padded(prompts, batch_size):
      batch = place({"tokens": tokens, "mask": mask})
      ids = generate(
        method,
        trainable,
        frozen,
        batch["tokens"],
        batch["mask"],
        keys[np.resize(rows, len(tokens))],
        sampling.temperature,
        end_ids=ends,
        new=sampling.max_new_tokens,
        out_sharding=whole,
      )
      for row, new in zip(rows, np.asarray(ids), strict=False):
        results[row] = cut_at_end(new, ends)
      bar.update(len(rows))
  return results


def generate_texts(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  texts: Sequence[str],
  sampling: Sampling,
  batch_size: int = 32,
) -> list[Any]:
  """Continues texts; a list of str, or of lists of str with `num_samples` above 1."""
  if isinstance(texts, str):
    raise UserError("generate takes a list of texts; put the one text into a list")
  if lm.tokenizer is None:
    raise UserError("this model has no tokenizer: texts cannot be read; use token ids")
  if sampling.num_samples < 1:
    raise UserError(f"num_samples is {sampling.num_samples}; it must be at least 1")
  prompts = [lm.tokenizer(text)["input_ids"] for text in texts for _ in range(sampling.num_samples)]
  new = generate_ids(method, trainable, frozen, lm, prompts, sampling, batch_size)
  decoded = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
  if sampling.num_samples == 1:
    return decoded
  n = sampling.num_samples
  return [decoded[i : i + n] for i in range(0, len(decoded), n)]


def _check_length(number: int, length: int, new: int, context: int) -> None:
  if length == 0:
    raise UserError(f"text {number} is empty and cannot be continued; give at least one token")
  if length + new > context:
    raise UserError(
      f"text {number} has {length} tokens, which with {new} new ones do not fit the model's context"
      f" of {context}; shorten it or lower the number of new tokens"
    )


def _end_ids(tokenizer: Any) -> tuple[int, ...]:
  if tokenizer is None or tokenizer.eos_token_id is None:
    return ()
  return (tokenizer.eos_token_id,)
