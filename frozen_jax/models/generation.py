"""Completions of prompts by a tuned model: the decoding engine with a model's own pieces."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from frozen_jax.backbones import stack
from frozen_jax.core.device import per_backend
from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import Base, Method, Prompt, Tree
from frozen_jax.data.settings import InputSettings
from frozen_jax.decoding import beam
from frozen_jax.decoding.engine import MAX_ROWS, Engine
from frozen_jax.decoding.requests import Completion, Sampling
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.rules import replicated, row_groups
from frozen_jax.text.templates import end_of_turn, make_template
from frozen_jax.text.token_ids import check_ids

PROGRESS_DELAY = 5  # seconds before a progress bar shows


@runtime_checkable
class Model(Protocol):
  """What generation needs of a tuned model (`models.tuned_model.TunedModel`)."""

  @property
  def lm(self) -> Base: ...

  @property
  def method(self) -> Method: ...

  @property
  def trained(self) -> Tree: ...

  @property
  def frozen(self) -> Tree: ...

  @property
  def inputs(self) -> InputSettings: ...


def complete(
  model: Model, prompts: Sequence[Prompt], sampling: Sampling, rows: int | None = None
) -> list[list[Completion]]:
  """Completes each prompt `sampling.num_samples` times, at most `rows` at once.

  rows: None: a number for the backend in use. Raises UserError for a prompt that leaves no room in
  the model's context, and for stop texts where the model has no tokenizer.
  """
  if sampling.stop and model.lm.tokenizer is None:
    raise UserError("stop texts need a tokenizer and this model has none; leave them out")
  engine = _engine(model, prompts, sampling.max_new_tokens, rows)
  with _progress(prompts) as bar:
    return engine.run(prompts, sampling, bar.update)


def beam_search(
  model: Model,
  prompts: Sequence[Prompt],
  num_beams: int,
  max_new_tokens: int,
  rows: int | None = None,
) -> list[list[Completion]]:
  """The `num_beams` likeliest completions that beam search finds for each prompt, best first.

  A vocabulary of few tokens may offer fewer. At most `rows` beams at once, or those of one prompt.
  Raises UserError as `complete`, and for numbers below 1.
  """
  for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
    if value < 1:
      raise UserError(f"{name} is {value}; it must be at least 1")
  engine = _engine(model, prompts, max_new_tokens, rows)
  with _progress(prompts) as bar:
    return beam.search(engine, prompts, num_beams, max_new_tokens, bar.update)


def complete_texts(
  model: Model,
  texts: Sequence[str],
  encode: Callable[[Sequence[str]], list[Prompt]],
  sampling: Sampling,
  rows: int | None = None,
) -> list[Any]:
  """Completes texts; a list of str, or of lists of str with `num_samples` above 1.

  encode: texts as their prompts. Raises UserError without a tokenizer, and as `complete`.
  """
  check_texts(texts, model.lm)
  completions = complete(model, encode(texts), sampling, rows)
  if sampling.num_samples == 1:
    return [samples[0].text for samples in completions]
  return [[sample.text for sample in samples] for samples in completions]


def check_texts(texts: Sequence[str], lm: Base) -> None:
  """UserError for one text in place of a list, and for a model without a tokenizer."""
  if isinstance(texts, str):
    raise UserError("generate takes a list of texts; put the one text into a list")
  if lm.tokenizer is None:
    raise UserError("this model has no tokenizer: texts cannot be read; use token ids")


def check_length(
  what: str, length: int, max_new_tokens: int, num_virtual_tokens: int, context: int
) -> None:
  """UserError where a prompt of `length` tokens, its completion and a trained prompt exceed the
  context; `what` names the prompt.
  """
  if length == 0:
    raise UserError(f"{what} is empty and cannot be continued; give at least one token")
  if length + max_new_tokens + num_virtual_tokens > context:
    prompt = f" and the {num_virtual_tokens} of the trained prompt" if num_virtual_tokens else ""
    raise UserError(
      f"{what} has {length} tokens, which with {max_new_tokens} new ones{prompt} do not fit the"
      f" model's context of {context}; shorten it or lower the number of new tokens"
    )


def _engine(
  model: Model, prompts: Sequence[Prompt], max_new_tokens: int, rows: int | None
) -> Engine:
  """The engine for these prompts, which fit the context and the table (else UserError)."""
  lm, frozen = model.lm, model.frozen
  groups = 1 if lm.mesh is None else row_groups(lm.mesh)
  num_virtual_tokens = model.method.num_virtual_tokens(model.trained, frozen)
  for number, prompt in enumerate(prompts, start=1):
    length = len(prompt.tokens)
    check_length(f"text {number}", length, max_new_tokens, num_virtual_tokens, lm.config.context)
    check_ids(prompt.tokens, lm.config.vocab_size, f"text {number}", lm.tokenizer)
  return Engine(
    model.method,
    model.trained,
    frozen,
    functools.partial(shard_batch, mesh=lm.mesh),
    replicated(lm.mesh),
    end_ids(model),
    None if lm.tokenizer is None else functools.partial(_decode, lm.tokenizer),
    decode_frozen=_with_separate_layers(frozen),
    row_groups=groups,
    rows=-(-rows // groups) * groups if rows else per_backend(MAX_ROWS) * groups,
  )


def _with_separate_layers(frozen: Tree) -> Tree:
  """The frozen tree as single-token steps read it: with the LM's layers apart."""
  return frozen | {"lm": frozen["lm"] | {"layers": stack.unstack(frozen["lm"]["layers"])}}


def _progress(prompts: Sequence[Prompt]) -> ProgressBar:
  hidden = len(prompts) <= 1 or not is_first_host()
  return ProgressBar(
    total=len(prompts), desc="generate", disable=hidden, delay=PROGRESS_DELAY, leave=False
  )


def end_ids(model: Model) -> tuple[int, ...]:
  """The LM's end tokens.

  What was trained also ends its answers with the tokenizer's, and in the chat form with that of a
  turn, since one of them is its last target.
  """
  ids, tokenizer = set(getattr(model.lm, "end_ids", ())), model.lm.tokenizer
  own = set() if tokenizer is None else {tokenizer.eos_token_id}
  if model.trained and tokenizer is not None and make_template(model.inputs.template).chat:
    own.add(end_of_turn(tokenizer))
  if model.trained or not ids:
    ids |= own - {None}
  return tuple(sorted(ids))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
  return tokenizer.decode(ids, skip_special_tokens=True)
