"""How data becomes the inputs of a model: its task, no longer than the model's context."""

import dataclasses
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Method
from frozen_jax.data.examples import Example
from frozen_jax.data.settings import DataSettings, InputSettings
from frozen_jax.data.sources import Source, open_source
from frozen_jax.data.tasks import EncoderTokenizer, Task, make_task


def open_task(
  lm: Any, data: DataSettings, spec: str, prompt_length: int, method: Method | None = None
) -> tuple[Source, Task]:
  """The examples that `spec` names and the task that makes inputs of them.

  Args:
    lm: the frozen LM.
    prompt_length: positions of the context that are left free for a trained prompt.
    method: whose batches are to be made, with a text encoder's inputs if it reads one.

  Raises UserError for a prompt that fills the context, and as `open_source`.
  """
  available = lm.config.context - prompt_length
  if available < 2:
    raise UserError(
      f"prompt.length {prompt_length} fills the model's context of {lm.config.context}; lower it"
    )
  source = open_source(spec, data.fields, templates=data.templates)
  lengths = tuple(dict.fromkeys(min(length, available) for length in data.lengths))
  inputs = dataclasses.replace(data, lengths=lengths)
  encoder = None if method is None else encoder_inputs(lm, method, data)
  return source, make_task(source, lm.tokenizer, inputs, encoder, lm.config.vocab_size)


def first_questions(data: DataSettings, spec: str, max_questions: int = 0) -> list[Example]:
  """The first `max_questions` (0: all) questions that `spec` names, each with an id.

  Raises UserError for plain text.
  """
  source = open_source(spec, data.fields, templates=data.templates)
  count = min(len(source), max_questions or len(source))
  examples = [{"id": str(number), **source[number]} for number in range(count)]
  if not {"question", "input"} & examples[0].keys():
    raise UserError(f"{spec} holds plain text; give questions with their answers")
  return examples


def datasets_of(data: DataSettings) -> tuple[str, ...]:
  """The data sets of the training data, each of which gets a prompt; UserError for none."""
  names = open_source(data.train, data.fields, templates=data.templates).datasets
  if not names:
    raise UserError(
      f"prompt.per_task needs rows that name their data set, and {data.train} has none; set"
      " prompt.per_task=False"
    )
  return tuple(names)


def encoder_inputs(lm: Any, method: Method, inputs: InputSettings) -> EncoderTokenizer | None:
  """How texts are put to the text encoder, if the method reads one; cut to what it can take."""
  if lm.encoder is None or not method.encoder_input:
    return None
  length = min(inputs.encoder_length, lm.encoder.config.max_tokens - method.p_prime_length)
  if length < 2:
    raise UserError(f"data.encoder_length leaves {length} tokens for the encoder; raise it")
  return EncoderTokenizer(lm.encoder.tokenizer, length, lm.encoder.config.vocab_size)
