"""What can be known to be wrong with a reader before any weight is read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import user_path
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_source
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.retrieve_read.pack import make_packer
from frozen_jax.pipelines.retrieve_read.questions import (
  BUILTIN_CORPUS,
  asked_questions,
  question_of,
)
from frozen_jax.pipelines.retrieve_read.settings import ReaderSettings


def check_reader(run: RunSettings, lm: Any) -> None:
  """Checks budgets, questions and corpus of a run with a reader.

  Args:
    lm: the frozen LM, as far as its config and tokenizer go.

  Raises:
    UserError: a budget that the context does not hold, or that holds no text; a row that is no
      question with answers; a question that leaves no budget room; no file of passages.
  """
  settings: ReaderSettings = run.pipelines["reader"]
  _check_corpus(settings)
  budgets = [*settings.budgets, *(reads(stage)[1] for stage in run.stages)]
  room = room_beside_text(run)
  longest = min(stage.data.lengths[-1] + stage.prompt.length for stage in run.stages)
  available = min(lm.config.context, longest)
  if max(budgets) > available:
    raise UserError(
      f"a budget of {max(budgets)} tokens is more than the {available} that the model's context and"
      " data.lengths hold; lower reader.budgets and reader.budget, or raise data.lengths"
    )
  packer = make_packer(lm, settings, min(budgets), "none", *room)
  counts = {
    "train": settings.questions,
    "validation": run.train.validate_examples,
    "test": run.evaluate.max_examples,
  }
  for split, count in counts.items():
    spec = getattr(run.data, split)
    source = open_source(spec, run.data.fields)
    for number in range(min(len(source), count)):
      packer.pack(question_of(source[number], f"{spec}, question {number + 1}"), ())


def without_passages(run: RunSettings, lm: Any, examples: Sequence[Example]) -> list[Example]:
  """Questions at prediction time as the last stage reads one for which nothing is found.

  lm: as in `check_reader`. Raises UserError for what is no question or leaves the budget no room,
  and where there is no file of passages.
  """
  settings: ReaderSettings = run.pipelines["reader"]
  _check_corpus(settings)
  packer = make_packer(lm, settings, reads(run.stages[-1])[1], "none", *room_beside_text(run))
  asked = asked_questions(examples)
  return [{"id": one.id, "input": packer.pack(one.question, ()).prompt} for one in asked]


def _check_corpus(settings: ReaderSettings) -> None:
  if settings.corpus != BUILTIN_CORPUS and not user_path(settings.corpus).is_file():
    raise UserError(f"reader.corpus: there is no file {settings.corpus}; check the path")


class Room(NamedTuple):
  """What a budget holds besides the text: prompt vectors and tokens of the answer."""

  num_virtual_tokens: int
  max_new_tokens: int


def room_beside_text(run: RunSettings) -> Room:
  """Enough for every stage: they read the same packs, and are compared on them."""
  return Room(
    max(stage.prompt.length for stage in run.stages),
    max(stage.evaluate.max_new_tokens for stage in run.stages),
  )


def reads(stage: StageSettings) -> tuple[str, int]:
  """The ranking and the budget that a stage reads."""
  reader = stage.pipelines["reader"]
  return reader.ranking, reader.budget
