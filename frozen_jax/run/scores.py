"""The table of a run: every system of the same test data, scored in the same way."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frozen_jax.data.batches import scoring_batches
from frozen_jax.data.sources import Source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.intervals import with_intervals
from frozen_jax.evaluation.likelihood import score as teacher_forced
from frozen_jax.methods import METHODS
from frozen_jax.run import options as experiment
from frozen_jax.run.answering import Rows, answer, check_questions, prediction_rows
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System, open_task
from frozen_jax.run.task_scores import score_tasks
from frozen_jax.sharding.place import make_place

_LOG = logging.getLogger(__name__)

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a system is worth.

  figures      of `data.test`
  held_out     of each source of `data.held_out`
  by_task      of each source with several data sets: the table of `evaluation.by_task`
  predictions  for `data.test`, as they stand in a file
  """

  figures: Figures
  held_out: dict[str, Figures] = dataclasses.field(default_factory=dict)
  by_task: dict[str, Any] = dataclasses.field(default_factory=dict)
  predictions: Rows = dataclasses.field(default_factory=list)


def score(system: System, lm: FrozenLM) -> Scores:
  """Scores a system on its `data.test` and on each source of `data.held_out`.

  Figures: `loss` and `perplexity`; for questions `exact_match` and `f1` of greedily decoded answers
  with their 95% intervals (`evaluation.intervals`), and `accuracy` (teacher-forced); for data of
  many tasks those of `evaluation.by_task`, of which `accuracy` is that of rank classification;
  `examples`; counts of what was cut or skipped.
  """
  data = system.options["data"]
  figures, tables, predictions = _score(system, lm, data["test"])
  held_out = {}
  for name in data["held_out"]:
    held_out[name], more, _ = _score(system, lm, name)
    tables |= more
  return Scores(figures, held_out, tables, predictions)


def _score(system: System, lm: FrozenLM, name: str) -> tuple[Figures, dict[str, Any], Rows]:
  """Figures of one source, its table by task where it has tasks, and the predictions."""
  evaluate = system.options["evaluate"]
  source, task = open_task(system.options, name, lm, system.method)
  batches = scoring_batches(source, task, evaluate["batch_size"], evaluate["max_examples"])
  place = make_place(lm.mesh)
  figures = teacher_forced(system.method, system.trained, system.frozen(lm), batches, place)
  figures |= {name: count for name, count in batches.counts.items() if count}
  if not isinstance(task, QuestionTask):
    return figures, {}, []
  if has_tasks(source):
    table, predictions = score_tasks(system, lm, source, task)
    own = {key: figures[key] for key in ("loss", "perplexity")}
    counts = {"examples": table["rows"], "skipped": table["skipped"]}
    return {**table["mean"], **own, **counts}, {name: table}, predictions
  found = _answered(system, lm, source, task)
  return found.figures | figures, {}, found.predictions


def answered(system: System, lm: FrozenLM) -> Scores:
  """Exact match and F1 of a system on the questions of its `data.test`, with their intervals.

  `score` without the likelihoods, for which every prompt is read once more.
  """
  source, task = open_task(system.options, system.options["data"]["test"], lm, system.method)
  assert isinstance(task, QuestionTask)
  return _answered(system, lm, source, task)


def _answered(system: System, lm: FrozenLM, source: Source, task: QuestionTask) -> Scores:
  examples = _examples(source, system.options)
  return score_answers(task, examples, answer(system, lm, task, examples))


def score_answers(task: QuestionTask, examples: Rows, answers: Sequence[str]) -> Scores:
  """Exact match and F1 of answers to examples, with their 95% intervals."""
  accepted = [task.answers(example) for example in examples]
  graded = [grade([one], [right]) for one, right in zip(answers, accepted, strict=True)]
  figures = with_intervals(graded) | {"examples": len(examples)}
  return Scores(figures, predictions=prediction_rows(task, examples, answers))


def has_tasks(source: Source) -> bool:
  """Whether a source is scored by data set and template: its rows name them, or have choices."""
  return bool(source.datasets or source[0].get("choices"))


def check(options: experiment.Options, lm: FrozenLM) -> None:
  """UserError where a question that will be asked in `data.test` does not fit the context."""
  source, task = open_task(options, options["data"]["test"], lm)
  if isinstance(task, QuestionTask) and not has_tasks(source):
    check_questions(options, lm, task, _examples(source, options), source.name)


def _examples(source: Source, options: experiment.Options) -> Rows:
  return [source[i] for i in range(min(len(source), options["evaluate"]["max_examples"]))]


def compared(systems: Mapping[str, System], lm: FrozenLM) -> dict[str, Scores]:
  """Scores the LM as it comes and every stage that has the last one's test data.

  Returns {row of the table: its scores}, the last system's last.
  """
  *_, last = systems.values()
  as_it_comes = System(METHODS["zero_shot"](lm, {}), {}, {}, last.options)
  rows = {"zero_shot": as_it_comes}
  if getattr(lm.tokenizer, "chat_template", None) and last.options["data"]["template"] == "plain":
    chat = last.options | {"data": last.options["data"] | {"template": "chat"}}
    rows["zero_shot_chat"] = System(as_it_comes.method, {}, {}, chat)
  test = last.options["data"]["test"]
  same = {n: s for n, s in systems.items() if s.options["data"]["test"] == test}
  return score_all(rows | same, lm)


def score_all(
  rows: Mapping[str, System],
  lm: FrozenLM,
  by: Callable[[System, FrozenLM], Scores] = score,
) -> dict[str, Scores]:
  """{row of the table: the scores of its system}, `by` this function."""
  scores: dict[str, Scores] = {}
  for name, system in rows.items():
    begun = time.monotonic()
    scores[name] = by(system, lm)
    _LOG.info("evaluated %s in %.0f s", name, time.monotonic() - begun)
  return scores
