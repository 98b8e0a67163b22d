"""The questions of a reader, and which passages of its corpus answer them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError
from frozen_jax.data.builders import world_passages
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_source
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.retrieval.corpus import (
  Corpus,
  Passage,
  open_corpus,
  passages_fingerprint,
  write_corpus,
)

BUILTIN_CORPUS = "world_facts"  # the corpus that belongs to the questions of that name


class Question(NamedTuple):
  """A question. positives: positions in the corpus of the passages that answer it, if known.

  dataset: of several that questions come from ("": there is one).
  """

  id: str
  question: str
  answers: tuple[str, ...]
  positives: tuple[int, ...]
  dataset: str = ""


def open_passages(name: str, artifacts: Artifacts) -> Corpus:
  """The corpus of a file, or the built-in one, which is written to the artifacts.

  Raises UserError as `retrieval.corpus.open_corpus`.
  """
  if name != BUILTIN_CORPUS:
    return open_corpus(name)
  passages = _builtin_passages()
  text = json.dumps(passages).encode()
  dependencies = {"passages": hashlib.sha256(text).hexdigest()}
  make = lambda target: write_corpus(target, passages)
  path = artifacts.file("corpus.jsonl", dependencies, make)
  return open_corpus(path)


def corpus_fingerprint(name: str) -> str:
  """`Corpus.fingerprint` of what `open_passages` opens, which writes nothing; UserError as that."""
  if name == BUILTIN_CORPUS:
    return passages_fingerprint(_builtin_passages())
  return open_corpus(name).fingerprint


def _builtin_passages() -> list[Passage]:
  return [Passage(*one) for one in world_passages.passages()]


def reader_questions(
  spec: str, fields: Sequence[str], corpus: Corpus, max_questions: int = 0
) -> list[Question]:
  """The questions of a source of `data.sources.open_source`, the first `max_questions` (0: all).

  A row may name its passages in `positive_ids`, texts or whole numbers, or one of them alone; those
  of the built-in questions are known. Raises UserError for rows that are no questions, and for a
  passage that the corpus does not have.
  """
  source = open_source(spec, fields)
  questions = []
  for number in range(min(len(source), max_questions or len(source))):
    row = source[number]
    where = f"{spec}, question {row.get('id', number + 1)}"
    question_of(row, where)
    ids = _ids(row.get("positive_ids"), where)
    if spec.startswith(f"{BUILTIN_CORPUS}/"):
      ids = world_passages.positive_ids(row["id"])
    positives, of = _positions(ids, corpus, where), row.get("dataset", "")
    answers = tuple(row["answers"])
    questions.append(Question(str(row["id"]), row["question"], answers, positives, of))
  return questions


def question_of(row: Mapping[str, Any], where: str) -> str:
  """The question of a row; UserError naming `where` for a row that is none with answers."""
  if not isinstance(row.get("question"), str) or not row.get("answers"):
    raise UserError(f'{where}: a reader takes {{"question", "answers"}}; fix that row')
  return row["question"]


def asked_questions(examples: Sequence[Example]) -> list[Question]:
  """The questions of prediction time; UserError for a row that is none."""
  for row in examples:
    if "question" not in row:
      raise UserError(
        f'{row["id"]} is no question; a reader takes lines of text, or {{"question"}} rows'
      )
  return [
    Question(row["id"], row["question"], tuple(row.get("answers") or ()), ()) for row in examples
  ]


def digest_of(questions: Sequence[Question]) -> str:
  """Names the questions, their answers and their passages."""
  return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def _ids(value: Any, where: str) -> list[str]:
  """The ids of passages as the corpus has them: as texts."""
  if value is None:
    return []
  ids = list(value) if isinstance(value, list | tuple) else [value]
  if not all(isinstance(id, str | int) and not isinstance(id, bool) for id in ids):
    raise UserError(f"{where}: positive_ids must be texts or whole numbers; fix that row")
  return [str(id) for id in ids]


def _positions(ids: Sequence[Any], corpus: Corpus, where: str) -> tuple[int, ...]:
  try:
    return tuple(corpus.position(id) for id in ids)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
