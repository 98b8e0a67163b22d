"""What can be known to be wrong with candidates before any weight is read."""

from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation.predictions import check_question_lengths
from frozen_jax.models.inputs import first_questions, open_task
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.propose_select.folds import folds_of
from frozen_jax.pipelines.propose_select.settings import CandidateSettings


def check_candidates(run: RunSettings, lm: Any, training: bool = True) -> None:
  """Checks the stages of a run whose last one reads proposals, and the questions of pass one.

  Args:
    lm: the frozen LM, as far as its config and tokenizer go.
    training: whether training questions are to be sampled for, too.

  Raises:
    UserError: a proposer that is no stage before the last, or does not train; stages that put a
      question in other ways; data that are no questions, or one too long for the context; fewer
      groups of training questions than folds.
  """
  settings: CandidateSettings = run.pipelines["candidates"]
  proposer = _proposer(run, settings.proposer)
  data, length = proposer.data, proposer.prompt.length
  counts = {
    "train": settings.questions,
    "validation": proposer.train.validate_examples,
    "test": proposer.evaluate.max_examples,
  }
  for split, count in counts.items():
    if split != "test" and not training:
      continue
    spec = getattr(data, split)
    task = open_task(lm, data, spec, length)[1]
    asked = first_questions(data, spec, 0 if split == "train" else count)
    if split == "train":
      folds_of(asked, settings.folds, proposer.seed)
      asked = asked[: count or len(asked)]
    assert isinstance(task, QuestionTask)  # `first_questions` refuses plain text
    new = proposer.evaluate.max_new_tokens
    check_question_lengths(lm, task, asked, spec, new, length)


def _proposer(run: RunSettings, name: str) -> StageSettings:
  last = run.stages[-1]
  proposer = next((stage for stage in run.stages[:-1] if stage.name == name), None)
  if proposer is None:
    raise UserError(
      f"candidates.proposer is {name!r}; name a stage of config.stage_order before the last"
    )
  for stage, what in ((last, "nothing reads what is proposed"), (proposer, "nobody proposes")):
    if not stage.train.trains:
      raise UserError(f"stage {stage.name} has 0 steps, so {what}; give it some")
  if proposer.data.template != last.data.template:
    raise UserError(
      f"stages {name} and {last.name} have other data.template; give both the same, by which a"
      " question is put to pass one"
    )
  return proposer
