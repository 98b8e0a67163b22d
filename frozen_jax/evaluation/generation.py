"""Texts in, texts out: tokenising, and continuing prompts with a method by the engine."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from frozen_jax.backbones import stack
from frozen_jax.core.device import suited
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Method, Prompt, Tree
from frozen_jax.decoding import beam
from frozen_jax.decoding.engine import ROWS, Engine
from frozen_jax.decoding.requests import Continuation, Sampling
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.place import everywhere, make_place
from frozen_jax.sharding.rules import row_groups

QUIET = 5  # seconds before a progress bar shows


class Answerer(Base, Protocol):
  """What generation needs of the frozen LM besides its weights."""

  @property
  def mesh(self) -> Any: ...


def continuations(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Prompt],
  sampling: Sampling,
  rows: int | None = None,
) -> list[list[Continuation]]:
  """Continues each prompt `sampling.num_samples` times, at most `rows` at once.

  None: as many as suits the device.

  Raises UserError for a prompt that leaves no room in the model's context, and for stop texts where
  the model has no tokenizer.
  """
  if sampling.stop and lm.tokenizer is None:
    raise UserError("stop texts need a tokenizer and this model has none; leave them out")
  engine = _engine(method, trainable, frozen, lm, prompts, sampling.max_new_tokens, rows)
  with _progress(prompts) as bar:
    return engine.run(prompts, sampling, bar.update)


def beams(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Prompt],
  num_beams: int,
  max_new_tokens: int,
  rows: int | None = None,
) -> list[list[Continuation]]:
  """The `num_beams` likeliest continuations that beam search finds for each prompt, best first.

  A vocabulary of few tokens may have no more to offer than fewer. At most `rows` beams at once, or
  those of one prompt. Raises UserError as `continuations`, and for numbers below 1.
  """
  for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
    if value < 1:
      raise UserError(f"{name} is {value}; it must be at least 1")
  engine = _engine(method, trainable, frozen, lm, prompts, max_new_tokens, rows)
  with _progress(prompts) as bar:
    return beam.search(engine, prompts, num_beams, max_new_tokens, bar.update)


def generate_ids(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Prompt],
  sampling: Sampling,
  rows: int | None = None,
) -> list[list[int]]:
  """The new ids of each prompt's first continuation, before the end token; see `continuations`."""
  found = continuations(method, trainable, frozen, lm, prompts, sampling, rows)
  return [samples[0].ids for samples in found]


def generate_texts(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  texts: Sequence[str],
  encode: Callable[[Sequence[str]], list[Prompt]],
  sampling: Sampling,
  rows: int | None = None,
) -> list[Any]:
  """Continues texts; a list of str, or of lists of str with `num_samples` above 1.

  encode: texts as their prompts. Raises UserError without a tokenizer, and as `continuations`.
  """
  check_texts(texts, lm)
  found = continuations(method, trainable, frozen, lm, encode(texts), sampling, rows)
  if sampling.num_samples == 1:
    return [samples[0].text for samples in found]
  return [[sample.text for sample in samples] for samples in found]


def check_texts(texts: Sequence[str], lm: Answerer) -> None:
  """UserError for one text in place of a list, and for a model without a tokenizer."""
  if isinstance(texts, str):
    raise UserError("generate takes a list of texts; put the one text into a list")
  if lm.tokenizer is None:
    raise UserError("this model has no tokenizer: texts cannot be read; use token ids")


def check_length(what: str, length: int, new: int, taken: int, context: int) -> None:
  """UserError where `length` tokens, `new` ones and `taken` prompt vectors exceed the context."""
  if length == 0:
    raise UserError(f"{what} is empty and cannot be continued; give at least one token")
  if length + new + taken > context:
    prompt = f" and the {taken} of the trained prompt" if taken else ""
    raise UserError(
      f"{what} has {length} tokens, which with {new} new ones{prompt} do not fit the model's"
      f" context of {context}; shorten it or lower the number of new tokens"
    )


def _engine(
  method: Method,
  trainable: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Prompt],
  max_new_tokens: int,
  rows: int | None,
) -> Engine:
  """The engine for these prompts, all of which fit the context (else UserError)."""
  taken = method.taken(trainable, frozen)
  for number, prompt in enumerate(prompts, start=1):
    check_length(f"text {number}", len(prompt.tokens), max_new_tokens, taken, lm.config.context)
  return Engine(
    method,
    trainable,
    frozen,
    make_place(lm.mesh),
    everywhere(lm.mesh),
    _end_ids(lm.tokenizer),
    None if lm.tokenizer is None else functools.partial(_decoded, lm.tokenizer),
    stepped=_stepped(frozen),
    rows=max(rows or suited(ROWS), 1 if lm.mesh is None else row_groups(lm.mesh)),
  )


def _stepped(frozen: Tree) -> Tree:
  """The frozen tree as single steps read it: with the LM's layers apart."""
  return frozen | {"lm": frozen["lm"] | {"layers": stack.apart(frozen["lm"]["layers"])}}


def _progress(prompts: Sequence[Prompt]) -> tqdm:
  """A bar over the prompts."""
  hidden = len(prompts) <= 1 or not is_first_host()
  return tqdm(total=len(prompts), desc="generate", disable=hidden, delay=QUIET, leave=False)


def _end_ids(tokenizer: Any) -> tuple[int, ...]:
  if tokenizer is None or tokenizer.eos_token_id is None:
    return ()
  return (tokenizer.eos_token_id,)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
  return tokenizer.decode(ids, skip_special_tokens=True)
