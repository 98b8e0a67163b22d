"""From an example to token ids: the model's input, and which of its tokens are targets.

A task has `prepare(source)` (rows encoded on access) and `lengths` (texts are padded to the first
that holds them; longer texts than the last are not trained on).
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.data.examples import Example
from frozen_jax.data.rows import Rows
from frozen_jax.data.settings import DEFAULT_LENGTHS, InputSettings, check_lengths
from frozen_jax.text.templates import (
  QuestionTemplate,
  answer_separator,
  end_of_turn,
  make_template,
  prompt_ids,
)
from frozen_jax.text.token_ids import check_ids

_DOCUMENTS_PER_CALL = 64

# Fast tokenizers are not thread-safe, and batches are prefetched in another thread.
_TOKENIZER_LOCK = threading.RLock()


class Encoded(NamedTuple):
  """Token ids of one example; those from `target_start` (at least 1) on are its targets.

  encoder_tokens and task as in `core.types.Prompt`; truncated: whether the text encoder's input is.
  """

  tokens: Sequence[int] | np.ndarray
  target_start: int
  encoder_tokens: Sequence[int] | None = None
  task: int | None = None
  truncated: bool = False


class QuestionTask:
  """A question (or input) to answer: the answer and the end token are the targets.

  The end token is the tokenizer's eos, and in the chat form what the chat template puts after an
  answer (`text.templates.end_of_turn`).

  Of several answers the first, the usual one, is always the target: answers that change from epoch
  to epoch teach rare spellings at the cost of the usual one. Prompt and answer are tokenised as at
  prediction: first the prompt, then the answer after it.
  """

  def __init__(
    self,
    tokenizer: Any,
    template: QuestionTemplate | str = "plain",
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    encoder: "EncoderTokenizer | None" = None,
    datasets: Sequence[str] = (),
    vocab_size: int | None = None,
  ):
    """Encodes examples for one model.

    Args:
      tokenizer: of the LM.
      template: see `text.templates.make_template`.
      lengths: rising; texts are padded to the first that holds them.
      encoder: for a method with a text encoder.
      datasets: data sets with prompts of their own. They are numbered from 1 in this order, and
        examples of others have the number 0. (): examples have no number.
      vocab_size: V of the LM, which no id of a row that is trained on or scored may reach.

    Raises:
      UserError: no tokenizer, or one without an end token; bad lengths or template.
    """
    self.tokenizer = _require_end_token(tokenizer)
    self.template = make_template(template) if isinstance(template, str) else template
    self.lengths = check_lengths(lengths)
    of_turn = end_of_turn(tokenizer) if self.template.chat else None
    self.end_id: int = tokenizer.eos_token_id if of_turn is None else of_turn
    self._encoder, self._vocab_size = encoder, vocab_size
    self._dataset_numbers = {name: number for number, name in enumerate(datasets, start=1)}

  def prepare(self, source: Rows[Example]) -> "Encodings":
    """Each example of the source, encoded on access."""
    return Encodings(source, self)

  def question(self, example: Example) -> str:
    """The question, or the input, of an example."""
    return example["question"] if "question" in example else example["input"]

  def answers(self, example: Example) -> list[str]:
    """The accepted answers, empty where the example has none."""
    if example.get("answers"):
      return list(example["answers"])
    return [example["target"]] if "target" in example else []

  def prompt(self, example: Example) -> Prompt:
    """The model's input before the answer."""
    return self._tokenize_prompt(example)[0]

  def choices(self, example: Example) -> list[list[int]]:
    """Token ids of each of the example's choices after its prompt, without the end token."""
    prompt = self._prompt_text(example)
    separator = "" if self.template.chat else answer_separator(prompt)
    ids = list(self.prompt(example).tokens)
    with _TOKENIZER_LOCK:
      return [self._answer_ids(prompt, separator + choice, ids) for choice in example["choices"]]

  def _tokenize_prompt(self, example: Example) -> tuple[Prompt, bool]:
    """The prompt, and whether the text encoder's input was truncated."""
    text, encoder_tokens, truncated = self._prompt_text(example), None, False
    with _TOKENIZER_LOCK:
      ids = prompt_ids(self.tokenizer, text, self.template.chat)
      if self._encoder is not None:
        encoder_tokens, truncated = self._encoder.ids(text)
    numbers = self._dataset_numbers
    task = numbers.get(example.get("dataset", ""), 0) if numbers else None
    return Prompt(ids, encoder_tokens, task), truncated

  def encode(self, example: Example) -> Encoded:
    """Prompt, first answer, end token.

    Raises UserError for an example without an answer, or with a token that the LM does not have.
    """
    prompt, answers = self._prompt_text(example), self.answers(example)
    if not answers:
      raise UserError(f"example {example.get('id', '')!r} has no answers; add them to train on it")
    separator = "" if self.template.chat else answer_separator(prompt)
    with _TOKENIZER_LOCK:
      (ids, encoder_tokens, task), truncated = self._tokenize_prompt(example)
      answer = self._answer_ids(prompt, separator + answers[0], ids)
    if not ids:
      raise UserError(f"example {example.get('id', '')!r} has an empty prompt; fill it in")
    tokens = [*ids, *answer, self.end_id]
    check_ids(tokens, self._vocab_size, f"example {example.get('id', '')!r}", self.tokenizer)
    return Encoded(tokens, len(ids), encoder_tokens, task, truncated)

  def _prompt_text(self, example: Example) -> str:
    """The input itself, or the question put into the template."""
    if "question" in example:
      return self.template.fill(example["question"])
    if "input" in example:
      return example["input"]
    raise UserError(
      f"example {example.get('id', '')!r} is plain text, among questions; keep texts in a file of"
      " their own"
    )

  def _answer_ids(self, prompt: str, answer: str, ids: list[int]) -> list[int]:
    """The answer's ids after the prompt; tokenised alone where the prompt's ids would change.

    (Some tokenizers put a token before every text, so an answer tokenised alone would differ.)
    """
    if not self.template.chat:
      joint = self.tokenizer(prompt + answer, verbose=False)["input_ids"]
      if joint[: len(ids)] == ids:
        after = joint[len(ids) :]
        return after[:-1] if after[-1:] == [self.tokenizer.eos_token_id] else after
    return self.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]


class LanguageModelTask:
  """Plain text, packed: windows of `lengths[-1]` tokens, all targets but the first of a window.

  Documents are joined, with the end token after each, and the stream is divided into windows
  without overlap, of which the last may be shorter. Where the tokenizer begins texts with the bos
  token, each window does, too. `vocab_size`: V of the LM, which no id may reach.
  """

  def __init__(
    self,
    tokenizer: Any,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    vocab_size: int | None = None,
  ):
    self.tokenizer = _require_end_token(tokenizer)
    self.lengths = check_lengths(lengths)
    self._vocab_size = vocab_size

  def prepare(self, source: Rows[Example]) -> "Windows":
    """Tokenises the whole source into memory (4 bytes a token); UserError for an id of no token."""
    name = getattr(source, "name", "the data")
    pieces: list[np.ndarray] = []
    for start in range(0, len(source), _DOCUMENTS_PER_CALL):
      stop = min(start + _DOCUMENTS_PER_CALL, len(source))
      texts = [_document_text(source[index], index) for index in range(start, stop)]
      with _TOKENIZER_LOCK:
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
      for row, one in enumerate(ids, start=start + 1):
        check_ids(one, self._vocab_size, f"{name}, row {row}", self.tokenizer)
      pieces += [np.array([*one, self.tokenizer.eos_token_id], np.int32) for one in ids if one]
    stream = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    if len(stream) < 2:
      raise UserError(f"{name} holds no text to train on")
    return Windows(stream, self.lengths[-1], self._bos())

  def _bos(self) -> tuple[int, ...]:
    """The bos token, if the tokenizer begins a text with it."""
    first = self.tokenizer("", verbose=False)["input_ids"][:1]
    return tuple(first) if first == [self.tokenizer.bos_token_id] else ()


class Encodings:
  """The examples of a source, encoded by a task on access."""

  def __init__(self, source: Rows[Example], task: QuestionTask):
    self._source, self._task = source, task

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Encoded:
    return self._task.encode(self._source[index])


class Windows:
  """A stream of token ids, int32 [N], divided into rows of `length` (the last may be shorter).

  first: the tokens with which each row begins, none or one.
  """

  def __init__(self, stream: np.ndarray, length: int, first: Sequence[int] = ()):
    self._stream, self._first = stream, np.array(first, np.int32)
    self._stride = length - len(first)  # tokens of the stream in a row
    self._count = -(-len(stream) // self._stride)
    if not first and len(stream) % length == 1:  # a single token has no target
      self._count -= 1

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Encoded:
    if not 0 <= index < self._count:
      raise IndexError(index)
    own = self._stream[index * self._stride : (index + 1) * self._stride]
    return Encoded(np.concatenate([self._first, own]), 1)


@runtime_checkable
class Task(Protocol):
  """What batches require of a task."""

  @property
  def lengths(self) -> tuple[int, ...]: ...

  def prepare(self, source: Rows[Example]) -> Rows[Encoded]: ...


class EncoderTokenizer:
  """Tokenises texts for a text encoder, truncated to `length` tokens.

  `vocab_size`: V of the encoder, which no id may reach. Raises UserError without a tokenizer.
  """

  def __init__(self, tokenizer: Any, length: int, vocab_size: int | None = None):
    if tokenizer is None:
      raise UserError("this encoder has no tokenizer; add tokenizer.json to its folder")
    self._tokenizer, self.length, self._vocab_size = tokenizer, length, vocab_size

  def ids(self, text: str) -> tuple[list[int], bool]:
    """Ids, with the special tokens that the encoder expects; whether the text was truncated."""
    with _TOKENIZER_LOCK:
      ids = self._tokenizer(text, verbose=False)["input_ids"]
      cut = len(ids) > self.length
      if cut:
        options = {"truncation": True, "max_length": self.length, "verbose": False}
        ids = self._tokenizer(text, **options)["input_ids"]
    check_ids(ids, self._vocab_size, f"the text {text[:60]!r} (encoder)", self._tokenizer)
    return list(ids), cut


def make_task(
  source: Rows[Example],
  tokenizer: Any,
  settings: InputSettings,
  encoder: EncoderTokenizer | None = None,
  vocab_size: int | None = None,
) -> Task:
  """The task for a source's rows: plain text is modelled, questions are answered.

  vocab_size: V of the LM, which no id may reach.
  """
  if "question" in (row := source[0]) or "input" in row:
    how = (settings.template, settings.lengths, encoder, settings.datasets, vocab_size)
    return QuestionTask(tokenizer, *how)
  return LanguageModelTask(tokenizer, settings.lengths, vocab_size)


def _document_text(example: Example, index: int) -> str:
  if "text" not in example:
    raise UserError(f"row {index + 1} has no text to model; its keys: {', '.join(sorted(example))}")
  return example["text"]


def decoded(tokenizer: Any, ids: np.ndarray) -> str:
  """The text of token ids, special tokens too."""
  with _TOKENIZER_LOCK:
    return tokenizer.decode(ids.tolist())


def _require_end_token(tokenizer: Any) -> Any:
  if tokenizer is None:
    raise UserError("this model has no tokenizer, so texts cannot be read; add its tokenizer files")
  if tokenizer.eos_token_id is None:
    raise UserError("this model's tokenizer has no end token, so no answer could end; name one")
  return tokenizer
