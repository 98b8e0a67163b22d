"""Templates that make a question a prompt of a language model."""

import dataclasses
import string
from typing import Any

from frozen_jax.core.errors import UserError

PLAIN = "Question: {question}\nAnswer:"

_ASKED, _REPLIED = "Which mountain?", "Kilimanjaro"  # with which the template is tried


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


def added_by_chat(tokenizer: Any) -> int:
  """How many tokens more a question takes in the tokenizer's chat form than in the plain one."""
  plain, chat = make_template("plain"), make_template("chat")
  length = lambda template: len(prompt_ids(tokenizer, template.fill(_ASKED), template.chat))
  return max(0, length(chat) - length(plain))


def end_of_turn(tokenizer: Any) -> int | None:
  """The token that the tokenizer's chat template puts after an answer, which ends its turn.

  It is the first special token after the answer: `<|im_end|>`, `<end_of_turn>`, `<|eot_id|>`,
  `<|end|>`, `</s>`. None where the template puts none there, or shows no answers.
  """
  if not getattr(tokenizer, "chat_template", None):
    return None
  messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _REPLIED}]
  try:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
  except Exception:  # a template raises what it likes; it is then used without an answer
    return None
  _, found, after = text.rpartition(_REPLIED)
  if not found:
    return None
  special = _special_ids(tokenizer)
  ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
  return next((index for index in ids if index in special), None)


def _special_ids(tokenizer: Any) -> set[int]:
  added = getattr(tokenizer, "added_tokens_decoder", {})
  return {*tokenizer.all_special_ids, *(index for index, one in added.items() if one.special)}


def answer_separator(prompt: str) -> str:
  """The text between a prompt and its answer: a space, unless the prompt ends in white space."""
  return "" if not prompt or prompt[-1].isspace() else " "
