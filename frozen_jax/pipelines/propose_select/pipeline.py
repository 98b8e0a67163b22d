"""The pipeline of textual recursion: propose answers out of fold, and show them to pass two.

The files stand in WORKDIR/candidates, see `pipelines/artifacts.py`:

  questions_foldN.jsonl                        all training questions but those of the fold
  questions_validation.jsonl                   by which the prompts of the folds are chosen
  sampled_foldN.jsonl, sampled_SPLIT.jsonl     questions with what was proposed to them
  rendered_SPLIT.jsonl                            the texts that pass two reads

For each fold a prompt is tuned on the others, as a stage `PROPOSER_foldN` with the settings of pass
one's stage. Validation and test questions get what pass one itself proposes.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import Row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.data.examples import Example
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.data.settings import DataSettings
from frozen_jax.evaluation.scores import Scores, score_model
from frozen_jax.models.generation import end_ids
from frozen_jax.models.identity import reading_of
from frozen_jax.models.inputs import first_questions
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.experiment import (
  RunSettings,
  StageSettings,
  TrainedStage,
  TrainStage,
  subsection,
)
from frozen_jax.pipelines.pipeline import ScoredModel, with_same_test_data
from frozen_jax.pipelines.propose_select import rendering, sampling
from frozen_jax.pipelines.propose_select.early_checks import check_candidates
from frozen_jax.pipelines.propose_select.folds import folds_of
from frozen_jax.pipelines.propose_select.settings import (
  CandidateRendering,
  CandidateSampling,
  CandidateSettings,
)
from frozen_jax.pipelines.propose_select.table import picked_scores
from frozen_jax.sharding.checksum import checksum
from frozen_jax.training.metrics import MetricsWriter

CANDIDATES_FOLDER = "candidates"  # within a workdir
_BLOCK = 1024  # rows
_DERIVED = ("kind", "first_hop")  # fields of built-in rows that are not stored


class ProposeSelect:
  """The pipeline of one workdir; see `pipelines.pipeline.Pipeline`."""

  settings = CandidateSettings
  steps = ()
  stage_fields = ()
  scoring_fields = ()
  has_samples = True

  @classmethod
  def check(cls, run: RunSettings, lm: Any, training: bool = True) -> None:
    """See `check_candidates`."""
    check_candidates(run, lm, training)

  @classmethod
  def check_questions(cls, run: RunSettings, lm: Any, examples: Sequence[Example]) -> list[Example]:
    """As pass one reads them; what it proposes is not known."""
    return list(examples)

  @classmethod
  def dependencies(cls, run: RunSettings) -> dict[str, Callable[[], str]]:
    """Nothing: it reads the questions of pass one alone."""
    return {}

  def __init__(self, run: RunSettings, lm: Any, workdir: AnyPath):
    """Opens nothing: all that it reads are questions of pass one."""
    self._run, self._lm = run, lm
    self._settings: CandidateSettings = run.pipelines["candidates"]
    self._last = run.stages[-1]
    self.artifacts = Artifacts(workdir / CANDIDATES_FOLDER)
    self._proposer: tuple[StageSettings, TunedModel] | None = None

  def prepare(self, run: RunSettings, writer: MetricsWriter) -> RunSettings:
    """Nothing is made before pass one is trained."""
    return run

  def compared_stages(self, models: Mapping[str, ScoredModel]) -> list[str]:
    """Not the last stage, which reads proposals, and gets its row in `scores`."""
    others = {name: one for name, one in models.items() if name != self._last.name}
    return with_same_test_data(others)

  def stage(
    self, settings: StageSettings, trained: Mapping[str, TrainedStage], train: TrainStage
  ) -> StageSettings:
    """The last stage reads what was proposed; the others their own data."""
    if settings.name != self._last.name:
      return settings
    proposer = trained[self._settings.proposer]
    self._proposer = proposer.settings, proposer.model
    self._train_texts(proposer.settings, train)
    self.first_pass_questions("validation", proposer.settings.train.validate_examples)
    self.first_pass_questions("test", proposer.settings.evaluate.max_examples)
    paths = {split: str(self._texts(split)) for split in ("train", "validation", "test")}
    return settings.with_data(**paths, fields=(), templates="")

  def evaluated(self, settings: StageSettings, model: TunedModel) -> StageSettings:
    """The last stage on what pass one of a loaded model proposes, shown as it was tuned to read."""
    read = getattr(model.inference, "candidates", None)
    if read is None:
      raise UserError(
        "candidates: this adapter was not tuned to read any; evaluate it with the config of its own"
        " run"
      )
    self._settings = dataclasses.replace(self._settings, template=read.template)
    self._proposer = settings, model.first_pass
    self.first_pass_questions("test", settings.evaluate.max_examples)
    return settings.with_data(test=str(self._texts("test")), fields=(), templates="")

  def scores(
    self, scores: Mapping[str, Scores], models: Mapping[str, ScoredModel]
  ) -> dict[str, Scores]:
    """With majority, likeliest and oracle of the samples, and pass two."""
    rows = self.first_pass_questions("test", self._run.evaluate.max_examples)
    settings, model = models[self._last.name]
    last = score_model(model, settings.data, settings.evaluate, settings.prompt.length)
    return {**scores, **picked_scores(model, rows), self._last.name: last}

  def first_pass_questions(self, split: str, max_questions: int) -> list[Example]:
    """The first questions of a split of pass one's data, with what it proposes to them.

    Makes the files of that split where they are not there yet.
    """
    assert self._proposer is not None  # `stage` or `evaluated` comes first
    settings, model = self._proposer
    spec = getattr(settings.data, split)
    asked = _questions(settings.data, spec, max_questions)
    sampled = self._sampled(f"sampled_{split}.jsonl", settings, model, asked)
    self._render(split, [sampled], 0, settings.seed)
    return list(JsonLines(sampled))

  def inputs(self, examples: Sequence[Example]) -> list[Example]:
    """Proposals are part of the model's inference (`pipelines.cascade.inference`)."""
    return list(examples)

  def report(self) -> dict[str, Any]:
    return {}

  def lines(self, report: Mapping[str, Any]) -> list[str]:
    return []

  def _texts(self, split: str) -> pathlib.Path:
    """The file of what pass two reads of a split."""
    return self.artifacts.path(f"rendered_{split}.jsonl")

  def _train_texts(self, proposer: StageSettings, train: TrainStage) -> None:
    """The texts for pass two on the training questions, all proposed out of fold."""
    settings, data = self._settings, proposer.data
    examples = _questions(data, data.train)
    fold_of = folds_of(examples, settings.folds, proposer.seed)
    chosen = np.arange(len(examples)) < (settings.questions or len(examples))
    held_out = _questions(data, data.validation, proposer.train.validate_examples)
    validation = self._written("questions_validation.jsonl", held_out)
    sampled = []
    for fold in range(settings.folds):
      others = [example for example, one in zip(examples, fold_of, strict=True) if one != fold]
      path = self._written(f"questions_fold{fold}.jsonl", others)
      # The rows are as the source gave them: no fields are renamed, nor templates filled, again.
      of_fold = proposer.with_data(
        train=str(path), validation=str(validation), fields=(), templates=""
      )
      trained = train(dataclasses.replace(of_fold, name=f"{proposer.name}_fold{fold}"))
      asked = [examples[index] for index in np.flatnonzero((fold_of == fold) & chosen)]
      sampled.append(self._sampled(f"sampled_fold{fold}.jsonl", proposer, trained.model, asked))
    self._render("train", sampled, settings.permutations, proposer.seed)

  def _written(self, name: str, rows: Sequence[Example]) -> pathlib.Path:
    dependencies = {"rows": _rows_digest(rows)}
    make = lambda first: rows[first:]
    return self.artifacts.rows(name, dependencies, make, _BLOCK, len(rows))

  def _sampled(
    self, name: str, settings: StageSettings, model: TunedModel, examples: Sequence[Example]
  ) -> pathlib.Path:
    how = subsection(self._settings, CandidateSampling)
    dependencies = {
      "questions": _rows_digest(examples),
      "lm": self._lm.fingerprint,
      **reading_of(self._lm, model.inputs.template),
      "end_ids": sorted(end_ids(model)),
      "trained": checksum(model.trained),
      "frozen_inputs": checksum(model.frozen_inputs),
      "encoder": getattr(self._lm.encoder, "fingerprint", ""),
      "model": settings.model,
      "template": model.inputs.template,
      "max_new_tokens": model.generation.max_new_tokens,
      "sampling": how,
      "seed": settings.seed,
    }
    make = lambda first: sampling.sample_answers(model, examples[first:], how, settings.seed)
    return self.artifacts.rows(name, dependencies, make, sampling.SAMPLING_BLOCK, len(examples))

  def _render(
    self, split: str, paths: Sequence[pathlib.Path], permutations: int, seed: int
  ) -> None:
    settings, learns = self._settings, split != "test"
    dependencies: dict[str, Any] = {
      "samples": [self.artifacts.digests[path.name] for path in paths],
      "rendering": subsection(settings, CandidateRendering),
      "permutations": permutations,
      "seed": seed,
      "learn_from": settings.learn_from if learns else "",
    }

    def make(first: int) -> Iterator[Row]:
      rows: Iterator[Row] = itertools.chain.from_iterable(map(JsonLines, paths))
      if learns:
        rows = (row for row in rows if rendering.is_training_row(row, settings))
      texts = (text for row in rows for text in rendering.render(row, settings, permutations, seed))
      return itertools.islice(texts, first, None)

    path = self.artifacts.rows(self._texts(split).name, dependencies, make, _BLOCK)
    if learns and not path.stat().st_size:
      raise UserError(
        f"no {split} question has a right answer among the {settings.max_candidates} that are"
        " shown, so that pass two has nothing to learn from; set candidates.learn_from=all"
      )


def _questions(data: DataSettings, spec: str, max_questions: int = 0) -> list[Example]:
  """`first_questions` without derived fields, which files of earlier versions do not have."""
  examples = first_questions(data, spec, max_questions)
  return [{key: value for key, value in one.items() if key not in _DERIVED} for one in examples]


def _rows_digest(rows: Sequence[Any]) -> str:
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
