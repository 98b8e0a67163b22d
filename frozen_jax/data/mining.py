"""The training data of a re-ranker: a question's positive passages, and mined hard negatives.

Negatives are passages that a retriever ranks high and that do not answer the question (Karpukhin et
al. 2020, section 3.2). A passage is identified by its corpus's key for it (`PassageKey`).
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError
from frozen_jax.text.answers import contains, normalise

PassageKey = Hashable

_CACHED_TEXTS = 2**16  # of passages


class Group(NamedTuple):
  """A question, the passages that answer it (at least one), and hard negatives, hardest first."""

  question: str
  positives: tuple[PassageKey, ...]
  negatives: tuple[PassageKey, ...]


def mine_groups(
  questions: Sequence[Mapping[str, Any]],
  positives: Sequence[Sequence[PassageKey]],
  ranked: Sequence[Sequence[PassageKey]],
  text_of: Callable[[PassageKey], str],
  depth: int = 50,
  drop_answers: bool = False,
) -> list[Group]:
  """Groups with hard negatives from the rankings of a retriever.

  Args:
    questions: rows with `question` and, for `drop_answers`, `answers`; with `id` for messages.
    positives: of each question the passages that answer it.
    ranked: of each question passages, best first; positives among them are skipped.
    text_of: the text of a passage.
    depth: how many negatives to keep at most, the best ranked ones.
    drop_answers: leave out passages that contain an accepted answer (words are compared as SQuAD
      compares answers): they may answer the question, although they are not marked as positives.

  Raises:
    UserError: a question without a positive.
  """
  text_of = functools.lru_cache(_CACHED_TEXTS)(text_of)
  words_of = functools.lru_cache(_CACHED_TEXTS)(lambda key: normalise(text_of(key)))
  groups = []
  for number, (row, relevant, ranking) in enumerate(
    zip(questions, positives, ranked, strict=True), start=1
  ):
    if not relevant:
      raise UserError(
        f"question {row.get('id', number)} ({row['question'][:60]!r}) has no passage that answers"
        " it; leave it out of the re-ranker's training data or name one"
      )
    answers = [normalise(answer) for answer in row["answers"]] if drop_answers else []
    used_keys, used_texts = set(relevant), {text_of(key) for key in relevant}
    negatives: list[PassageKey] = []
    for key in ranking:
      if len(negatives) == depth:
        break
      if key in used_keys or (text := text_of(key)) in used_texts:
        continue
      if answers and contains(words_of(key), answers):
        continue
      used_keys.add(key)
      used_texts.add(text)
      negatives.append(key)
    groups.append(Group(row["question"], tuple(relevant), tuple(negatives)))
  return groups
