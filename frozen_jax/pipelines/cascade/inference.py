"""How a model of two passes answers: pass one, what it hands on as text, pass two where needed.

Textual recursion reads what pass one proposes; the neural recursive LM repeats pass one within its
own second pass, so nothing is handed on as text. A gate (`evaluation.gate`) leaves out the second
pass of questions whose answer pass one is sure of: for those nothing is proposed, read or decoded
again, and the others fill batches of their own.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from frozen_jax.config.section import resolve, section_values
from frozen_jax.data.examples import Example
from frozen_jax.decoding.requests import Completion, Sampling
from frozen_jax.evaluation.candidates import agreement, merge_samples
from frozen_jax.evaluation.gate import Gate
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.pipelines.propose_select import rendering
from frozen_jax.pipelines.propose_select.sampling import sample_answers
from frozen_jax.pipelines.propose_select.settings import CandidateSettings


class FirstPass(NamedTuple):
  """Pass one's greedy answers, and its confidence in each, float64 [N] from 0 to 1.

  rows: the examples, with the samples where the confidence was read off them.
  """

  texts: list[str]
  confidences: np.ndarray
  rows: list[Example]


class Reply(NamedTuple):
  """An answer, the example as the last pass that was taken read it, and how many were taken."""

  text: str
  read: Example
  passes: int


@dataclasses.dataclass(frozen=True)
class TwoPassInference:
  """See `models.tuned_model.Inference`.

  gate        which questions take pass two; None: all do
  candidates  what pass one proposes and how it is shown; None: nothing is handed on as text
  seed        of the sampling of candidates
  """

  gate: Gate | None = None
  candidates: CandidateSettings | None = None
  seed: int = 0

  def answer(self, model: TunedModel, examples: Sequence[Example]) -> list[str]:
    return [reply.text for reply in self.replies(model, examples)]

  def inputs(self, model: TunedModel, examples: Sequence[Example]) -> list[Example]:
    """With candidates, where pass two reads those; samples that are there are not drawn again."""
    if self.candidates is None:
      return list(examples)
    rows = self._with_samples(model, examples)
    return [text for row in rows for text in rendering.render(row, self.candidates)]

  def to_json(self) -> dict[str, Any]:
    return {
      "gate": None if self.gate is None else dataclasses.asdict(self.gate),
      "candidates": None if self.candidates is None else section_values(self.candidates),
      "seed": self.seed,
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "TwoPassInference":
    """The inverse of `to_json`."""
    gate, candidates = values["gate"], values["candidates"]
    return cls(
      None if gate is None else Gate(**gate),
      None if candidates is None else resolve(CandidateSettings, candidates, "candidates"),
      values["seed"],
    )

  def replies(self, model: TunedModel, examples: Sequence[Example]) -> list[Reply]:
    """Greedy answers, by as many passes as the gate asks for, if there is one."""
    if self.gate is None:
      read = self.inputs(model, examples)
      answers = model.answer_once(read) if read else []
      return [Reply(text, one, 2) for text, one in zip(answers, read, strict=True)]
    return self.second_where_needed(model, self.first_pass(model, examples, self.gate.measure))

  def first_pass(
    self, model: TunedModel, examples: Sequence[Example], confidence: str
  ) -> FirstPass:
    """Asks pass one, and takes its confidence, one of `evaluation.gate.MEASURES`.

    probability: of the greedy answer with its end token. margin: by what share of its probability
    the least certain token of it was likelier than the next best. agreement: the share of the
    samples that the most frequent answer has, for which every question is sampled.
    """
    first = model.first_pass
    task = first.question_task
    prompts = [task.prompt(example) for example in examples]
    sampling = Sampling(first.generation.max_new_tokens)
    greedy = [one for (one,) in first.complete(prompts, sampling)]
    rows = list(examples)
    if confidence == "agreement":
      rows = self._with_samples(model, examples)
      values = [agreement(merge_samples([tuple(one) for one in row["samples"]])) for row in rows]
    else:
      values = [_confidence(one, confidence) for one in greedy]
    return FirstPass([one.text.strip() for one in greedy], np.array(values, np.float64), rows)

  def second_where_needed(self, model: TunedModel, first: FirstPass) -> list[Reply]:
    """Pass one's answers, and pass two's for those that the gate lets it answer."""
    assert self.gate is not None
    replies = [Reply(text, row, 1) for text, row in zip(first.texts, first.rows, strict=True)]
    again = np.flatnonzero(self.gate.needs_second_pass(first.confidences))
    read = self.inputs(model, [first.rows[index] for index in again])
    answers = model.answer_once(read) if read else []
    for index, text, one in zip(again, answers, read, strict=True):
      replies[index] = Reply(text, one, 2)
    return replies

  def _with_samples(self, model: TunedModel, examples: Sequence[Example]) -> list[Example]:
    assert self.candidates is not None
    missing = [example for example in examples if "samples" not in example]
    sampled = iter(sample_answers(model.first_pass, missing, self.candidates, self.seed))
    return [example if "samples" in example else next(sampled) for example in examples]


def inference_of(run: RunSettings, seed: int) -> TwoPassInference | None:
  """How the last model of a run answers: by two passes where the run has candidates, ungated."""
  candidates = run.pipelines.get("candidates")
  return None if candidates is None else TwoPassInference(None, candidates, seed)


def replies(model: TunedModel, examples: Sequence[Example]) -> list[Reply]:
  """A model's answers with what was read for them, whichever way it answers."""
  if isinstance(model.inference, TwoPassInference):
    return model.inference.replies(model, examples)
  return [Reply(text, one, 1) for text, one in zip(model.answer(examples), examples, strict=True)]


def _confidence(one: Completion, measure: str) -> float:
  return math.exp(one.total_log_prob) if measure == "probability" else 1 - math.exp(-one.min_margin)
