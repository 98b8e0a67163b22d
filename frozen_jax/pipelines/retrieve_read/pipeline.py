"""The pipeline of a frozen reader: retrieve, train the re-ranker, re-rank, pack; each as needed.

The files stand in WORKDIR/reader, see `pipelines/artifacts.py`. A stage of the run then reads the
packed prompts that its `reader.ranking` (one of `pack.py`) and `reader.budget` name.
"""

import dataclasses
import functools
import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from frozen_jax.config.dependencies import key
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_json
from frozen_jax.core.json_row import Row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.data.examples import Example
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.data.mining import Group
from frozen_jax.evaluation.scores import Scores
from frozen_jax.models.identity import encoder_identity
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.experiment import (
  RunSettings,
  StageSettings,
  TrainedStage,
  TrainStage,
  subsection,
)
from frozen_jax.pipelines.pipeline import ScoredModel
from frozen_jax.pipelines.retrieve_read import blend, pack, re_rank, retrieve, table
from frozen_jax.pipelines.retrieve_read.early_checks import (
  check_reader,
  reads,
  room_beside_text,
  without_passages,
)
from frozen_jax.pipelines.retrieve_read.questions import (
  Question,
  asked_questions,
  corpus_fingerprint,
  digest_of,
  open_passages,
  reader_questions,
)
from frozen_jax.pipelines.retrieve_read.settings import (
  READER_STEPS,
  LmRankingSettings,
  ReaderSettings,
  ScoringSettings,
)
from frozen_jax.retrieval.fid_rows import read_rows
from frozen_jax.retrieval.settings import PackingSettings, RetrievalSettings
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.loop import StageRun
from frozen_jax.training.metrics import MetricsWriter

READER_FOLDER = "reader"  # within a workdir
RE_RANKER, BLEND = "re_ranker", "blend_weights.json"
SPLITS = ("train", "validation", "test")
_LOG = logging.getLogger(__name__)


class RetrieveRead:
  """The pipeline of one workdir; see `pipelines.pipeline.Pipeline`."""

  settings = ReaderSettings
  steps = READER_STEPS
  stage_fields = ("ranking", "budget")
  scoring_fields = ("rankings", "budgets", "recall_at")
  has_samples = False

  @classmethod
  def check(cls, run: RunSettings, lm: Any, training: bool = True) -> None:
    """See `check_reader`; an evaluation finds passages for all questions where they are not there
    yet, as training does."""
    check_reader(run, lm)

  @classmethod
  def check_questions(cls, run: RunSettings, lm: Any, examples: Sequence[Example]) -> list[Example]:
    """See `without_passages`."""
    return without_passages(run, lm, examples)

  @classmethod
  def dependencies(cls, run: RunSettings) -> dict[str, Callable[[], str]]:
    """The corpus, the encoders of the dense retriever, the base of the re-ranker."""
    settings: ReaderSettings = run.pipelines["reader"]
    found = {"reader.corpus": lambda: corpus_fingerprint(settings.corpus)}
    if "dense" in settings.retrievers:
      of_questions = settings.question_encoder or settings.encoder
      found["reader.encoder"] = lambda: encoder_identity(settings.encoder)
      found["reader.question_encoder"] = lambda: encoder_identity(of_questions)
    if _uses_re_ranker({reads(stage)[0] for stage in run.stages} | set(settings.rankings)):
      found["reader.re_ranker.base"] = lambda: re_rank.base_fingerprint(settings.re_ranker)
    return found

  def __init__(self, run: RunSettings, lm: Any, workdir: AnyPath):
    """Opens the corpus and the retrievers; UserError for whatever cannot be read."""
    self._run, self._lm = run, lm
    self._settings: ReaderSettings = run.pipelines["reader"]
    self._mesh = lm.mesh or make_mesh()
    self._reads = {stage.name: reads(stage) for stage in run.stages}
    self._room = room_beside_text(run)
    self.artifacts = Artifacts(workdir / READER_FOLDER)
    self.corpus = open_passages(self._settings.corpus, self.artifacts)
    retrieval = subsection(self._settings, RetrievalSettings)
    self.retrieval = retrieve.Retrieval(retrieval, self.corpus, self.artifacts, self._mesh)

  def prepare(self, run: RunSettings, writer: MetricsWriter) -> RunSettings:
    """Makes what is not there yet, up to the step `stop_after` of the run.

    Each stage then reads the packed questions of its ranking and budget.
    """
    self._make(writer, run.stop_after)
    stages = []
    for stage in run.stages:
      names = {split: _pack_name(*self._reads[stage.name], split) for split in SPLITS}
      paths = {split: str(self.artifacts.path(name)) for split, name in names.items()}
      stages.append(stage.with_data(**paths, fields=(), templates=""))
    return dataclasses.replace(run, stages=tuple(stages))

  def _make(self, writer: MetricsWriter, stop_after: str) -> None:
    self._retrieve()
    if stop_after == "retrieve":
      return
    if _uses_re_ranker(self._rankings()):
      self._train_re_ranker(writer)
      if stop_after == "re_ranker":
        return
      for split in self._splits("re_ranked", stop_after):
        self._rank("re_ranked", split)
    if "blended" in self._rankings():
      self._blend(self._splits("blended", stop_after))
    if "lm" in self._rankings():
      for split in self._splits("lm", stop_after):
        self._rank("lm", split)
    if stop_after in ("re_ranker", "re_rank"):
      return
    for ranking, budget in self._reads.values():
      for split in SPLITS:
        self._pack(ranking, budget, split)
    for ranking, budget in self.compared:
      self._pack(ranking, budget, "test")

  def stage(
    self, settings: StageSettings, trained: Mapping[str, TrainedStage], train: TrainStage
  ) -> StageSettings:
    """As `prepare` has left it."""
    return settings

  def evaluated(self, settings: StageSettings, model: TunedModel) -> StageSettings:
    """As `prepare` has left it."""
    return settings

  def compared_stages(self, models: Mapping[str, ScoredModel]) -> list[str]:
    """All of them: they read the same questions, with other passages."""
    return list(models)

  def scores(
    self, scores: Mapping[str, Scores], models: Mapping[str, ScoredModel]
  ) -> dict[str, Scores]:
    """With the last model on every pack, and what stands in the prompts of each row."""
    return table.with_packs(self, scores, models)

  def first_pass_questions(self, split: str, max_questions: int) -> list[Example] | None:
    """Those of the stage's data."""
    return None

  def inputs(self, examples: Sequence[Example]) -> list[Example]:
    """Questions `{"id", "question", "answers"?}` -> rows for the last stage: prompt, passages.

    Raises UserError for what is no question, and where the re-ranker that is needed is not there.
    """
    ranking, budget = self._reads[self._run.stages[-1].name]
    rows: Iterable[Row] = self.retrieval.rows(asked_questions(examples))
    if ranking in ("re_ranked", "blended"):
      for needed in (RE_RANKER, BLEND) if ranking == "blended" else (RE_RANKER,):
        if not self.artifacts.found(needed).exists():
          where = self.artifacts.given / needed
          raise UserError(f"there is no {where}; let the run there come to its end")
      rows = re_rank.re_rank(rows, self._scorer, self.retrieval.depth)
      rows = blend.blended(rows, self._weights()) if ranking == "blended" else rows
    elif ranking == "lm":
      rows = self._rank_by_likelihood(rows)
    return list(pack.pack_rows(rows, ranking, self.corpus, self._packer(ranking, budget)))

  def report(self) -> dict[str, Any]:
    """{"retrieval": recall of each ranking that was made}."""
    return {"retrieval": table.recall(self, self._settings, self._lm)}

  def lines(self, report: Mapping[str, Any]) -> list[str]:
    """The recall table."""
    return table.recall_lines(report.get("retrieval", {}))

  @property
  def compared(self) -> list[tuple[str, int]]:
    """The rankings and budgets that the table compares."""
    return list(itertools.product(self._settings.rankings, self._settings.budgets))

  def test_pack(self, ranking: str, budget: int) -> pathlib.Path:
    """The packed test questions of a ranking and a budget."""
    return self.artifacts.path(_pack_name(ranking, budget, "test"))

  def has(self, ranking: str) -> bool:
    """Whether the test questions' passages have been put into that ranking."""
    return f"{_source(ranking)}_test.jsonl" in self.artifacts.digests

  def rows(self, ranking: str, split: str = "test") -> Iterator[Row]:
    """The rows with the passages in that ranking: as retrieved, or re-ranked."""
    rows: Iterator[Any] = read_rows(self.artifacts.path(f"{_source(ranking)}_{split}.jsonl"))
    return rows

  def _rankings(self) -> set[str]:
    return {ranking for ranking, _ in self._reads.values()} | set(self._settings.rankings)

  def _splits(self, ranking: str, stop_after: str) -> tuple[str, ...]:
    """The splits for which a ranking is needed; `blended` is made of `re_ranked` and weighs it.

    Training questions are needed for the packing alone, and are many.
    """
    read = {ranking for ranking, _ in self._reads.values()}
    if stop_after != "re_rank" and (
      ranking in read or (ranking == "re_ranked" and "blended" in read)
    ):
      return SPLITS
    weighed = ranking == "re_ranked" and "blended" in self._rankings()
    return SPLITS[1:] if weighed else SPLITS[2:]

  def _retrieve(self) -> None:
    run, data = self._run, self._run.data
    validated = max(run.train.validate_examples, self._settings.re_ranker.validate_examples)
    counts = {
      "train": self._settings.max_train_questions,
      "validation": validated,
      "test": run.evaluate.max_examples,
    }
    for split, count in counts.items():
      questions = reader_questions(getattr(data, split), data.fields, self.corpus, count)
      dependencies = {"questions": digest_of(questions), **self.retrieval.dependencies}
      make = functools.partial(self._retrieved, questions)
      name = f"retrieved_{split}.jsonl"
      self.artifacts.rows(name, dependencies, make, retrieve.SEARCH_BLOCK, len(questions))

  def _retrieved(self, questions: Sequence[Question], first: int) -> Iterator[Row]:
    return self.retrieval.rows(questions[first:])

  def _train_re_ranker(self, writer: MetricsWriter) -> None:
    settings, run = self._settings.re_ranker, self._run
    dependencies = {
      "re_ranker": settings,
      "base": re_rank.base_fingerprint(settings),
      "corpus": self.corpus.fingerprint,
      "seed": run.seed,
      "reader_questions": self._settings.questions,
      **{
        f"retrieved_{split}": self.artifacts.digests[f"retrieved_{split}.jsonl"]
        for split in SPLITS[:2]
      },
    }

    def make(folder: AnyPath) -> None:
      groups: tuple[list[Group], list[Group]] = ([], [])
      if settings.trains:
        others = itertools.islice(self.rows("fused", "train"), self._settings.questions, None)
        held_out = itertools.islice(self.rows("fused", "validation"), settings.validate_examples)
        groups, left_out = re_rank.training_groups((others, held_out), self.corpus, settings)
        if left_out:
          _LOG.info("re-ranker: %d questions left out: no passages to tell apart", left_out)
      checkpoints = self.artifacts.given / f"training-{key(dependencies)}"
      stage = StageRun(
        *(re_rank.STAGE, checkpoints, self._mesh, writer, dependencies),
        fingerprint="",
        source=f"{run.data.train} with its passages",
        timeout=run.data.timeout,
      )
      re_rank.train_re_ranker(folder, groups, self.corpus, settings, run.seed, stage)

    self.artifacts.tree(RE_RANKER, dependencies, make)

  def _rank(self, ranking: str, split: str) -> None:
    """Ranks the passages of a split by the re-ranker, or by the LM."""
    # All validation questions by the re-ranker: the weights of `blended` stand on them.
    every = ranking == "re_ranked" and split == "validation"
    count = None if every else self._count(split)
    dependencies: dict[str, Any] = {
      "retrieved": self.artifacts.digests[f"retrieved_{split}.jsonl"],
      "questions": count,
    }
    if ranking == "re_ranked":
      dependencies["re_ranker"] = self.artifacts.digests[RE_RANKER]
      dependencies["scoring"] = subsection(self._settings.re_ranker, ScoringSettings)
    else:
      dependencies["lm"] = self._lm.fingerprint
      dependencies["tokenizer"] = tokenizer_hash(self._lm.tokenizer)
      dependencies["model"] = self._run.model
      dependencies["lm_ranking"] = subsection(self._settings, LmRankingSettings)
      dependencies["template"] = self._settings.template

    def make(first: int) -> Iterator[Row]:
      rows = itertools.islice(self.rows("fused", split), first, count)
      if ranking == "lm":
        return self._rank_by_likelihood(rows)
      return re_rank.re_rank(rows, self._scorer, self.retrieval.depth)

    block = pack.RANKING_BLOCK if ranking == "lm" else re_rank.SCORING_BLOCK
    name = f"{_source(ranking)}_{split}.jsonl"
    self.artifacts.rows(name, dependencies, make, block, count)

  def _blend(self, splits: Sequence[str]) -> None:
    """Weighs re-ranker and retrievers on validation questions, and ranks by their sum."""
    digests = self.artifacts.digests
    make = lambda path: write_json(path, blend.fit_weights(self.rows("re_ranked", "validation")))
    self.artifacts.file(BLEND, {"re_ranked": digests["re_ranked_validation.jsonl"]}, make)
    _LOG.info("blended: %s", ", ".join(f"{k} {w:.2f}" for k, w in self._weights().items()))
    for split in splits:
      dependencies = {
        "re_ranked": digests[f"re_ranked_{split}.jsonl"],
        "weights": digests[BLEND],
      }
      blended = functools.partial(self._blended, split)
      self.artifacts.rows(f"blended_{split}.jsonl", dependencies, blended, pack.PACKING_BLOCK)

  def _blended(self, split: str, first: int) -> Iterator[Row]:
    rows = itertools.islice(self.rows("re_ranked", split), first, None)
    return blend.blended(rows, self._weights())

  def _weights(self) -> dict[str, float]:
    return json.loads(self.artifacts.path(BLEND).read_text())

  @functools.cached_property
  def _scorer(self) -> re_rank.Scorer:
    """The trained re-ranker, read once."""
    folder, settings = self.artifacts.path(RE_RANKER), self._settings.re_ranker
    return re_rank.open_scorer(folder, settings, self._mesh)

  def _rank_by_likelihood(self, rows: Iterable[Row]) -> Iterator[Row]:
    size = self._run.evaluate.batch_size
    return pack.rank_by_likelihood(rows, self._lm, self._settings, size)

  def _pack(self, ranking: str, budget: int, split: str) -> pathlib.Path:
    source, count = f"{_source(ranking)}_{split}.jsonl", self._count(split)
    dependencies = {
      "ranked": self.artifacts.digests[source],
      "corpus": self.corpus.fingerprint,
      "questions": count,
      "tokenizer": tokenizer_hash(self._lm.tokenizer),
      "packing": subsection(self._settings, PackingSettings),
      **self._room._asdict(),
    }

    def make(first: int) -> Iterator[Row]:
      rows = itertools.islice(self.rows(ranking, split), first, count)
      return pack.pack_rows(rows, ranking, self.corpus, self._packer(ranking, budget))

    name = _pack_name(ranking, budget, split)
    return self.artifacts.rows(name, dependencies, make, pack.PACKING_BLOCK, count)

  def _packer(self, ranking: str, budget: int) -> Any:
    return pack.make_packer(self._lm, self._settings, budget, ranking, *self._room)

  def _count(self, split: str) -> int | None:
    """How many questions of a split the reader is given; None: all."""
    validated = self._run.train.validate_examples
    return {"train": self._settings.questions, "validation": validated, "test": None}[split]


def _uses_re_ranker(rankings: set[str]) -> bool:
  return bool({"re_ranked", "blended"} & rankings)


def _source(ranking: str) -> str:
  files = {"re_ranked": "re_ranked", "blended": "blended", "lm": "lm_ranked"}
  return files.get(ranking, "retrieved")


def _pack_name(ranking: str, budget: int, split: str) -> str:
  return f"packed_{ranking}_{budget}_{split}.jsonl"
