"""The job between the stages of textual recursion: propose answers out of fold, and show them.

The files stand in WORKDIR/candidates, see `run/steps.py`:

  questions_foldN.jsonl                        all training questions but those of the fold
  questions_validation.jsonl                   by which the prompts of the folds are chosen
  sampled_foldN.jsonl, sampled_SPLIT.jsonl     questions with what was proposed to them
  shown_SPLIT.jsonl                            the texts that pass two reads

For each fold a prompt is tuned on the others, as a stage `OF_foldN` with the options of pass one's
stage. Validation and test questions get what pass one itself proposes.
"""

import copy
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.data.examples import Example
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.run import options as experiment
from frozen_jax.run.candidates import sampling, showing
from frozen_jax.run.candidates.folds import folds_of
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System, questions
from frozen_jax.run.steps import Steps
from frozen_jax.sharding.checksum import checksum

FOLDER = "candidates"  # within a workdir
_WRITTEN_AT_ONCE = 1024  # rows

TrainStage = Callable[[str, experiment.Options], System]


class Job:
  """The job of one workdir."""

  def __init__(self, options: experiment.Options, lm: FrozenLM, folder: pathlib.Path):
    """Raises UserError for candidates that cannot be, and templates that are none."""
    self._lm, self._options = lm, options["candidates"]
    check(options)
    self.steps = Steps(folder / FOLDER)

  def prepare(
    self,
    options: experiment.Options,
    systems: Mapping[str, System],
    train_stage: TrainStage,
  ) -> experiment.Options:
    """Makes what is not there yet, and returns the options with it as the last stage's data.

    systems: the stages before the last. train_stage: trains a stage (its name, the run's options).
    Raises UserError where pass one was not trained.
    """
    if self._options["of"] not in systems:
      raise UserError(f"stage {self._options['of']} has 0 steps, so nobody proposes; give it some")
    first = systems[self._options["of"]]
    options, name = copy.deepcopy(options), options["order"][-1]
    stage = experiment.stage_options(options, self._options["of"])
    self._train(options, stage, train_stage)
    self.proposed(first, "validation", stage["train"]["validate_examples"])
    self.proposed(first, "test", stage["evaluate"]["max_examples"])
    paths = {split: self.texts(split) for split in ("train", "validation", "test")}
    own = options["stages"][name]
    own["data"] = own.get("data", {}) | {split: str(path) for split, path in paths.items()}
    own["made_data"] = {split: self.steps.digests[path.name] for split, path in paths.items()}
    return options

  def texts(self, split: str) -> pathlib.Path:
    """The file of what pass two reads of a split."""
    return self.steps.path(f"shown_{split}.jsonl")

  def proposed(self, first: System, split: str, most: int) -> list[sampling.Row]:
    """The first `most` questions of a split of pass one's data, with what it proposes to them.

    Makes the files of that split where they are not there yet.
    """
    asked = questions(first.options, split, most)
    sampled = self._sampled(f"sampled_{split}.jsonl", first, asked)
    self._shown(split, [sampled], 0, first.options["seed"])
    return list(_lines(sampled))

  def _train(
    self, options: experiment.Options, stage: experiment.Options, train_stage: TrainStage
  ) -> None:
    """The texts for pass two on the training questions, all proposed out of fold."""
    examples, of = questions(stage, "train", 0), self._options["of"]
    fold_of = folds_of(examples, self._options["folds"], stage["seed"])
    chosen = np.arange(len(examples)) < (self._options["questions"] or len(examples))
    most = stage["train"]["validate_examples"]
    validation = self._written("questions_validation.jsonl", questions(stage, "validation", most))
    sampled = []
    for fold in range(self._options["folds"]):
      others = [example for example, at in zip(examples, fold_of, strict=True) if at != fold]
      paths = {
        "train": self._written(f"questions_fold{fold}.jsonl", others),
        "validation": validation,
      }
      name, of_fold = f"{of}_fold{fold}", copy.deepcopy(options)
      own = of_fold["stages"][name] = copy.deepcopy(options["stages"][of])
      # The rows are as the source gave them: no fields are renamed, nor templates filled, again.
      as_they_are = {"fields": [], "templates": ""}
      own["data"] = own.get("data", {}) | as_they_are | {k: str(path) for k, path in paths.items()}
      own["made_data"] = {k: self.steps.digests[path.name] for k, path in paths.items()}
      system = train_stage(name, of_fold)
      asked = [examples[at] for at in np.flatnonzero((fold_of == fold) & chosen)]
      sampled.append(self._sampled(f"sampled_fold{fold}.jsonl", system, asked))
    self._shown("train", sampled, self._options["orders"], stage["seed"])

  def _written(self, name: str, rows: Sequence[Example]) -> pathlib.Path:
    inputs = {"rows": _digest(rows)}
    return self.steps.rows(name, inputs, lambda first: rows[first:], _WRITTEN_AT_ONCE, len(rows))

  def _sampled(self, name: str, first: System, examples: Sequence[Example]) -> pathlib.Path:
    options, lm = first.options, self._lm
    inputs = {
      "questions": _digest(examples),
      "lm": lm.fingerprint,
      "tokenizer": tokenizer_hash(lm.tokenizer),
      "prompt": checksum(first.trained),
      "template": options["data"]["template"],
      "answer": options["evaluate"]["max_new_tokens"],
      "seed": options["seed"],
      **{key: options["model"][key] for key in ("dtype", "quantize", "cache")},
      **{key: self._options[key] for key in sampling.OPTIONS},
    }
    make = lambda done: sampling.sampled(first, lm, examples[done:])
    return self.steps.rows(name, inputs, make, sampling.SAMPLED_AT_ONCE, len(examples))

  def _shown(self, split: str, paths: Sequence[pathlib.Path], orders: int, seed: int) -> None:
    inputs = {
      "of": [self.steps.digests[path.name] for path in paths],
      "orders": orders,
      "seed": seed,
      **{key: self._options[key] for key in showing.OPTIONS},
    }
    teaching = split != "test"
    if teaching:
      inputs["learn_from"] = self._options["learn_from"]

    def make(done: int) -> Iterator[showing.Row]:
      rows: Iterator[sampling.Row] = itertools.chain.from_iterable(map(_lines, paths))
      if teaching:
        rows = (row for row in rows if showing.teaches(row, self._options))
      texts = (text for row in rows for text in showing.shown(row, self._options, orders, seed))
      return itertools.islice(texts, done, None)

    path = self.steps.rows(self.texts(split).name, inputs, make, _WRITTEN_AT_ONCE)
    if teaching and not path.stat().st_size:
      raise UserError(
        f"no {split} question has a right answer among the {self._options['most']} that are shown,"
        " so that pass two has nothing to learn from; set candidates.learn_from=all"
      )


def check(options: experiment.Options) -> None:
  """UserError for candidates that cannot be, whatever the data."""
  candidates, order = options["candidates"], options["order"]
  if candidates["of"] not in order[:-1]:
    raise UserError(
      f"candidates.of is {candidates['of']!r}; name a stage of config.order in front of the last"
    )
  if experiment.stage_options(options, order[-1])["train"]["steps"] < 1:
    raise UserError(
      f"stage {order[-1]} has 0 steps, so nothing reads what is proposed; give it some"
    )
  for key, least in (("samples", 1), ("most", 1), ("orders", 1), ("questions", 0), ("folds", 2)):
    if candidates[key] < least:
      raise UserError(f"candidates.{key} is {candidates[key]}; give at least {least}")
  sampling.sampling_of(options)
  showing.check(candidates)
  forms = [
    experiment.stage_options(options, n)["data"]["template"] for n in (candidates["of"], order[-1])
  ]
  if forms[0] != forms[1]:
    raise UserError(
      f"stages {candidates['of']} and {order[-1]} have other data.template; give both the same, by"
      " which a question is put to pass one"
    )


def _digest(rows: Sequence[Any]) -> str:
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  rows = JsonLines(path)
  return (rows[number] for number in range(len(rows)))
