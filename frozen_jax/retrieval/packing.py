"""Packing: which of the scored passages a frozen LM reads, and the prompt that contains them.

Passages are added greedily in descending score until the budget of tokens is used up (Levine et al.
2022; docs/paper.md, 3). The budget covers all that the LM processes: virtual tokens, the template,
the question, the passages and the answer. Tokens are counted in the prompt as the LM reads it, not
as a sum over its parts, which would be off wherever two parts meet. Training and test prompts are
packed by the same code.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.settings import PackingSettings
from frozen_jax.text.templates import prompt_ids

# Where parts meet, tokens may merge: a passage that seems too long by at most this many is tried.
_MERGED_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class TokenBudget:
  """The tokens of a context; UserError where none are left for text.

  total: tokens that the LM processes altogether. max_new_tokens: of these, reserved for the answer
  and its end token. num_virtual_tokens: of these, taken by a trained soft prompt
  (`Method.num_virtual_tokens`).
  """

  total: int
  max_new_tokens: int
  num_virtual_tokens: int = 0

  def __post_init__(self) -> None:
    if self.max_new_tokens < 1 or self.num_virtual_tokens < 0 or self.max_prompt_tokens < 1:
      raise UserError(
        f"a budget of {self.total} tokens with {self.num_virtual_tokens} prompt vectors and"
        f" {self.max_new_tokens} for the answer holds no text; raise it"
      )

  @property
  def max_prompt_tokens(self) -> int:
    """Tokens of text that the prompt may have."""
    return self.total - self.max_new_tokens - self.num_virtual_tokens


class PackedPrompt(NamedTuple):
  """A prompt with its passages.

  prompt: the text. passages: indices of its passages among those given, in the prompt's order.
  tokens: of the prompt as the LM reads it, without virtual tokens. truncated: whether its
  lowest-ranked passage is truncated. num_too_long: how many passages would not have fitted even
  alone.
  """

  prompt: str
  passages: tuple[int, ...]
  tokens: int
  truncated: bool
  num_too_long: int


class Packer:
  """Packs passages for one frozen LM. Equal questions and passages give equal prompts."""

  def __init__(self, tokenizer: Any, settings: PackingSettings, budget: TokenBudget):
    """`tokenizer`: the LM's fast tokenizer. Raises UserError where there is none."""
    if tokenizer is None:
      raise UserError("this model has no tokenizer, so texts cannot be read; add its files")
    self.settings, self.budget = settings, budget
    self._template, self._tokenizer = settings.template, tokenizer
    # A passage is retrieved for several questions; the cache holds one number for each.
    self._passage_tokens = functools.lru_cache(2**18)(self._count_passage_tokens)

  def pack(
    self,
    question: str,
    passages: Sequence[tuple[str, str]],
    scores: Sequence[float] | None = None,
  ) -> PackedPrompt:
    """The prompt with as many passages as fit.

    Args:
      question: as it is inserted into the template.
      passages: (title, text); a title may be "".
      scores: of the passages, the higher the better; ties go to the earlier passage. None: the
        passages are in descending order already.

    Raises:
      UserError: the question alone is longer than the budget; or, where `overflow` is "error", a
        passage is.
    """
    ranking = list(range(len(passages)))
    if scores is not None:
      ranking.sort(key=lambda index: -float(scores[index]))
    texts: dict[int, str] = {}  # index -> text of the chosen passages, best first
    overhead = used = self._count_tokens(question, texts)
    max_tokens, num_too_long, truncated = self.budget.max_prompt_tokens, 0, False
    if overhead > max_tokens:
      raise UserError(
        f"the question {question[:60]!r} takes {overhead} tokens with its template and the budget"
        f" leaves {max_tokens}; raise the budget or shorten the question"
      )
    for index in ranking:
      if self.settings.max_passages and len(texts) == self.settings.max_passages:
        break
      text = self._template.fill_passage(*passages[index])
      length = self._passage_tokens(text)
      if used + length <= max_tokens + _MERGED_TOKENS:
        count = self._count_tokens(question, {**texts, index: text})
        if count <= max_tokens:
          texts[index], used = text, count
          continue
      if self.settings.overflow == "truncate":
        beginning = self._longest_fitting_beginning(question, passages[index], texts, index)
        if beginning is not None:
          texts[index], truncated = beginning, True
        break
      alone = {index: text}
      if overhead + length > max_tokens and self._count_tokens(question, alone) > max_tokens:
        num_too_long += 1
        if self.settings.overflow == "error":
          raise UserError(
            f"a passage of {length} tokens ({text[:60]!r}) is longer than the"
            f" {max_tokens - overhead} that the budget leaves for passages; raise the budget,"
            " split the corpus into shorter passages, or let such passages be skipped or truncated"
          )
    prompt, tokens = self._fill(question, texts), self._count_tokens(question, texts)
    return PackedPrompt(prompt, tuple(self._in_order(texts)), tokens, truncated, num_too_long)

  def _in_order(self, texts: dict[int, str]) -> list[int]:
    """The indices of the chosen passages (given best first) in the order of the prompt."""
    best_first = self.settings.passage_order == "best_first"
    return list(texts) if best_first else list(texts)[::-1]

  def _fill(self, question: str, texts: dict[int, str]) -> str:
    return self._template.fill(question, [texts[index] for index in self._in_order(texts)])

  def _count_tokens(self, question: str, texts: dict[int, str]) -> int:
    """Tokens of the whole prompt, exactly as the LM reads it."""
    return len(prompt_ids(self._tokenizer, self._fill(question, texts)))

  def _count_passage_tokens(self, text: str) -> int:
    """Tokens of a passage by itself."""
    return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

  def _longest_fitting_beginning(
    self, question: str, passage: tuple[str, str], texts: dict[int, str], index: int
  ) -> str | None:
    """The longest beginning of a passage, in whole words, that fits; None where no word does."""
    title, text = passage
    spaces = [position for position in range(1, len(text)) if text[position].isspace()]
    word_ends = [end for end in spaces if not text[end - 1].isspace()]

    def beginning(words: int) -> str:
      return self._template.fill_passage(title, text[: word_ends[words - 1]])

    def fits(words: int) -> bool:
      count = self._count_tokens(question, {**texts, index: beginning(words)})
      return count <= self.budget.max_prompt_tokens

    low, high = 0, len(word_ends)  # `low` words fit; more than `high` words do not
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return beginning(low) if low else None
