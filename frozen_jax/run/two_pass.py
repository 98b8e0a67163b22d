"""Asking a method of two passes: pass one, what it hands on as text, and pass two where needed.

Textual recursion reads what pass one proposes; the neural recursive LM repeats pass one within its
own second pass, so nothing is handed on as text. A gate (`evaluation.gate`) leaves out the second
pass of rows whose answer pass one is sure of: those are not proposed to, read or decoded again, and
the others stand in full batches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frozen_jax.core.types import TwoPass
from frozen_jax.data.examples import Example
from frozen_jax.decoding.requests import Continuation, Sampling
from frozen_jax.evaluation.candidates import agreement, merged
from frozen_jax.evaluation.gate import Gate
from frozen_jax.run.answering import answer, continued
from frozen_jax.run.candidates import showing
from frozen_jax.run.candidates.sampling import sampled
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System, question_task


class First(NamedTuple):
  """Pass one's greedy answers, and how sure it is of each, float64 [N] from 0 to 1.

  rows: the examples, with the samples where confidence was read off them.
  """

  texts: list[str]
  sure: np.ndarray
  rows: list[Example]


class Reply(NamedTuple):
  """An answer, the example as the last pass that was taken read it, and how many were taken."""

  text: str
  read: Example
  passes: int


def first_of(system: System) -> System:
  """Pass one of a system alone."""
  assert isinstance(system.method, TwoPass)
  method, trained = system.method.first(system.trained, {"fixed": system.fixed})
  return System(method, trained, {}, system.options)


def for_last_pass(system: System, lm: FrozenLM, examples: Sequence[Example]) -> list[Example]:
  """The examples as the system's last pass reads them: with candidates, where it reads those.

  Examples that bring their samples along are not sampled again.
  """
  if "candidates" not in system.options:
    return list(examples)
  options = system.options["candidates"]
  rows = _with_samples(system, lm, examples)
  return [text for row in rows for text in showing.shown(row, options)]


def first_pass(system: System, lm: FrozenLM, examples: Sequence[Example], measure: str) -> First:
  """Asks pass one, and takes the confidence of that `measure`, one of `evaluation.gate.MEASURES`.

  probability: of the greedy answer with its end token. margin: by what share of its probability
  the least certain token of it was likelier than the next best. agreement: the share of the samples
  that the most frequent answer has, for which every question is sampled.
  """
  first, options = first_of(system), system.options
  task = question_task(options, lm, first.method)
  sampling = Sampling(options["evaluate"]["max_new_tokens"])
  greedy = [one for (one,) in continued(first, lm, task, examples, sampling)]
  asked = list(examples)
  if measure == "agreement":
    asked = _with_samples(system, lm, examples)
    sure = [agreement(merged([tuple(one) for one in row["samples"]])) for row in asked]
  else:
    sure = [_sure(one, measure) for one in greedy]
  return First([one.text.strip() for one in greedy], np.array(sure, np.float64), asked)


def replies(system: System, lm: FrozenLM, examples: Sequence[Example]) -> list[Reply]:
  """Greedy answers to questions, by as many passes as the system's gate asks for, if it has one."""
  options, passes = system.options, 1 + isinstance(system.method, TwoPass)
  if not options.get("gate"):
    read = for_last_pass(system, lm, examples)
    return [Reply(t, one, passes) for t, one in zip(_answers(system, lm, read), read, strict=True)]
  return where_needed(system, lm, first_pass(system, lm, examples, options["gate"]["measure"]))


def where_needed(system: System, lm: FrozenLM, first: First) -> list[Reply]:
  """Pass one's answers, and pass two's for those that the system's gate is not content with."""
  gate = Gate(**system.options["gate"])
  found = [Reply(text, row, 1) for text, row in zip(first.texts, first.rows, strict=True)]
  again = np.flatnonzero(gate.takes(first.sure))
  read = for_last_pass(system, lm, [first.rows[at] for at in again])
  for at, text, one in zip(again, _answers(system, lm, read), read, strict=True):
    found[at] = Reply(text, one, 2)
  return found


def _answers(system: System, lm: FrozenLM, read: Sequence[Example]) -> list[str]:
  if not read:
    return []
  return answer(system, lm, question_task(system.options, lm, system.method), read)


def _with_samples(system: System, lm: FrozenLM, examples: Sequence[Example]) -> list[Example]:
  missing = [example for example in examples if "samples" not in example]
  made = iter(sampled(first_of(system), lm, missing))
  return [example if "samples" in example else next(made) for example in examples]


def _sure(one: Continuation, measure: str) -> float:
  return math.exp(one.total) if measure == "probability" else 1 - math.exp(-one.margin)
