"""Templates that make a question a prompt of a language model."""

import dataclasses
import string
from typing import Any

from frozen_jax.core.errors import UserError

PLAIN = "Question: {question}\nAnswer:"


@dataclasses.dataclass(frozen=True)
class QuestionTemplate:
  """`prompt` is a str.format text with {question} in it; `chat`: use the model's chat template."""

  prompt: str = PLAIN
  chat: bool = False

  def fill(self, question: str) -> str:
    """The question put into `prompt`, before the chat template, which needs the tokenizer."""
    return self.prompt.format(question=question)


def make_template(name: str) -> QuestionTemplate:
  """The template that a config names.

  It is "plain", "chat" (the question is the user's message), or a text with {question} in it.
  Raises UserError for anything else.
  """
  if name == "plain":
    return QuestionTemplate()
  if name == "chat":
    return QuestionTemplate("{question}", chat=True)
  try:
    fields = [field for _, field, _, _ in string.Formatter().parse(name) if field is not None]
  except ValueError as error:
    raise UserError(
      f"template {name!r} is malformed ({error}); double those braces that are text"
    ) from error
  if set(fields) != {"question"}:
    raise UserError(
      f"template {name!r} is neither plain nor chat nor a text with {{question}} in it; give one"
    )
  return QuestionTemplate(name)


def prompt_ids(tokenizer: Any, text: str, chat: bool = False) -> list[int]:
  """Token ids of a prompt's text, with the special tokens that the tokenizer adds.

  With `chat` it is the user's message in the tokenizer's chat template, with the prompt of the
  model's reply. Raises UserError for a tokenizer without a chat template.
  """
  if not chat:
    return list(tokenizer(text, verbose=False)["input_ids"])
  if not getattr(tokenizer, "chat_template", None):
    raise UserError("this model's tokenizer has no chat template; use --config.data.template=plain")
  message = [{"role": "user", "content": text}]
  text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
  return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def answer_separator(prompt: str) -> str:
  """The text between a prompt and its answer: a space, unless the prompt ends in white space."""
  return "" if not prompt or prompt[-1].isspace() else " "
