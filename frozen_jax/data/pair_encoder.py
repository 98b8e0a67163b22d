"""The texts of a re-ranker (cross-encoder): a question and a passage, tokenised and joined."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import HostBatch
from frozen_jax.text.padding import pad_sequences
from frozen_jax.text.token_ids import check_ids

LENGTHS = (*range(32, 256, 16), *range(256, 513, 32))


class Pair(NamedTuple):
  """A question and a passage as one text: ids, token types, was the passage truncated?"""

  tokens: Sequence[int]
  types: Sequence[int]
  truncated: bool


class PairEncoder:
  """Joins a question and a passage to one text, as the encoder's tokenizer joins two texts.

  Texts longer than the last of `lengths` are truncated at the end of the passage.
  """

  def __init__(
    self,
    tokenizer: Any,
    types: int,
    context: int,
    lengths: Sequence[int] = LENGTHS,
    vocab_size: int | None = None,
  ):
    """Configures the encoder's input.

    Args:
      tokenizer: of the encoder, a fast one.
      types: how many token types the encoder has (`EncoderConfig.types`).
      context: how many positions the encoder has.
      lengths: rising; texts are padded to the first that holds them. Lengths beyond `context` are
        ignored.
      vocab_size: V of the encoder, which no id may reach.

    Raises:
      UserError: no tokenizer, or none of the lengths can be used.
    """
    if tokenizer is None:
      raise UserError("this encoder has no tokenizer; add tokenizer.json to its folder")
    self.lengths = tuple(length for length in lengths if length <= context)
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise UserError(
        f"lengths are {tuple(lengths)}; give rising numbers up to {context}, the encoder's context"
      )
    self._tokenizer, self._lock = tokenizer, threading.Lock()  # it is not thread-safe
    self._special_tokens = _special_tokens(tokenizer, types > 1)
    self._vocab_size = vocab_size
    for ids in self._special_tokens[:3]:
      check_ids(ids, vocab_size, "the tokens that join a question and a passage", tokenizer)

  def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The joined texts of (question, passage) pairs; equal texts are tokenised once.

    Raises:
      UserError: a question that leaves no room for a passage, a token that the encoder does not
        have.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    with self._lock:
      tokenized = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    ids = dict(zip(texts, tokenized, strict=True)) if texts else {}
    for text, tokens in ids.items():
      check_ids(tokens, self._vocab_size, f"the text {text[:60]!r}", self._tokenizer)
    return [self._join(question, ids[question], ids[passage]) for question, passage in pairs]

  def text(self, ids: np.ndarray) -> str:
    """The text of a pair's token ids, special tokens too."""
    with self._lock:
      return self._tokenizer.decode(ids.tolist())

  def _join(self, text: str, question: list[int], passage: list[int]) -> Pair:
    start, middle, end, types = self._special_tokens
    max_passage = self.lengths[-1] - len(question) - len(start) - len(middle) - len(end)
    if max_passage < 1:
      raise UserError(
        f"the question {text[:60]!r} has {len(question)} tokens and leaves no room for a passage in"
        f" {self.lengths[-1]}; shorten it or raise the re-ranker's lengths"
      )
    segments = (start, question, middle, passage[:max_passage], end)
    return Pair(
      [token for segment in segments for token in segment],
      [
        kind
        for segment, kinds in zip(segments, types, strict=True)
        for kind in _resized(kinds, len(segment))
      ],
      len(passage) > max_passage,
    )


class _SpecialTokens(NamedTuple):
  """The tokens before, between and after two texts, and the token types of all five segments."""

  start: list[int]
  middle: list[int]
  end: list[int]
  types: tuple[Any, ...]


def _special_tokens(tokenizer: Any, typed: bool) -> _SpecialTokens:
  """How the tokenizer joins two texts, found by joining two. typed: whether it has token types."""
  tokenize = lambda *texts, **options: tokenizer(*texts, verbose=False, **options)
  first, second = (
    tokenize(text, add_special_tokens=False)["input_ids"] for text in ("first", "second")
  )
  joined = tokenize("first", "second", return_token_type_ids=True)
  ids, types = list(joined["input_ids"]), list(joined["token_type_ids"])
  if not typed:
    types = [0] * len(ids)
  first_start = _find(first, ids, 0)
  first_end = first_start + len(first)
  second_start = _find(second, ids, first_end)
  second_end = second_start + len(second)
  bounds = (0, first_start, first_end, second_start, second_end, len(ids))
  segment_types = tuple(types[a:b] for a, b in itertools.pairwise(bounds))
  return _SpecialTokens(
    ids[:first_start], ids[first_end:second_start], ids[second_end:], segment_types
  )


def _find(part: list[int], ids: list[int], start: int) -> int:
  """The index at which a part begins in the ids, from `start` on."""
  for index in range(start, len(ids) - len(part) + 1):
    if ids[index : index + len(part)] == part:
      return index
  raise UserError(
    "the encoder's tokenizer changes a text that is joined to another; a re-ranker needs one that"
    " does not"
  )


def _resized(types: Sequence[int], count: int) -> Sequence[int]:
  """The token types of a segment, for another number of tokens."""
  return types if len(types) == count else [types[0] if types else 0] * count


def pad_pairs(texts: Sequence[Pair], lengths: Sequence[int], size: int | None = None) -> HostBatch:
  """One text per row as arrays `tokens` and `types` [R, T] and `mask` [R, 1, T], int32.

  T is the first of `lengths` that holds the longest; R is `size` (default: the number of texts).
  """
  max_length = max(len(text.tokens) for text in texts)
  width = next(length for length in lengths if length >= max_length)
  tokens, mask = pad_sequences([text.tokens for text in texts], width, size)
  types, _ = pad_sequences([text.types for text in texts], width, size)
  return {"tokens": tokens, "types": types, "mask": mask[:, None]}
