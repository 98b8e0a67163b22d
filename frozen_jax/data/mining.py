"""What a re-ranker learns to tell apart: a question's passages, and hard negatives mined for it.

Negatives are passages that a retriever ranks high and that do not answer the question (Karpukhin et
al. 2020, section 3.2). Passages are named by whatever their corpus names them by (`Key`).
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError
from frozen_jax.text.answers import contains, normalise

Key = Hashable

_REMEMBERED = 2**16  # passages whose texts are not looked up again


class Group(NamedTuple):
  """A question, the passages that answer it (at least one), and hard negatives, hardest first."""

  question: str
  positives: tuple[Key, ...]
  negatives: tuple[Key, ...]


def mined_groups(
  questions: Sequence[Mapping[str, Any]],
  positives: Sequence[Sequence[Key]],
  ranked: Sequence[Sequence[Key]],
  text_of: Callable[[Key], str],
  depth: int = 50,
  drop_answers: bool = False,
) -> list[Group]:
  """Groups with hard negatives out of the lists that a retriever ranked.

  Args:
    questions: rows with `question` and, for `drop_answers`, `answers`; with `id` for messages.
    positives: of each question the passages that answer it.
    ranked: of each question passages, best first; positives among them are passed over.
    text_of: the text of a passage.
    depth: how many negatives to keep at most, the best ranked ones.
    drop_answers: leave out those that hold an accepted answer (words compared as SQuAD compares
      answers): they may answer the question, though nobody marked them as positives.

  Raises:
    UserError: a question without a positive.
  """
  text_of = functools.lru_cache(_REMEMBERED)(text_of)
  words_of = functools.lru_cache(_REMEMBERED)(lambda key: normalise(text_of(key)))
  groups = []
  for number, (row, own, found) in enumerate(
    zip(questions, positives, ranked, strict=True), start=1
  ):
    if not own:
      raise UserError(
        f"question {row.get('id', number)} ({row['question'][:60]!r}) has no passage that answers"
        " it; leave it out of the re-ranker's training data or name one"
      )
    answers = [normalise(answer) for answer in row["answers"]] if drop_answers else []
    taken, known = set(own), {text_of(key) for key in own}
    kept: list[Key] = []
    for key in found:
      if len(kept) == depth:
        break
      if key in taken or (text := text_of(key)) in known:
        continue
      if answers and contains(words_of(key), answers):
        continue
      taken.add(key)
      known.add(text)
      kept.append(key)
    groups.append(Group(row["question"], tuple(own), tuple(kept)))
  return groups
