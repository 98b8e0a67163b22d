"""The `reader` section of a config. Imports no jax.

What an artifact depends on is a base class of its own, so that it is named in one place.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.dtypes import WEIGHT_DTYPES
from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.settings import RETRIEVERS, PackingSettings, RetrievalSettings
from frozen_jax.training.settings import TrainSettings, check_schedule

# Of passages; see pack.py.
RANKINGS = ("none", "bm25_1", "bm25", "dense", "fused", "lm", "re_ranked", "blended", "gold")
READER_STEPS = ("retrieve", "re_ranker", "re_rank", "pack")


@dataclasses.dataclass(frozen=True)
class ReRankerLora(Section):
  """Low-rank updates of the encoder, with `train=lora`."""

  section: ClassVar[str] = "reader.re_ranker.lora"

  rank: int = setting(8, "of the updates", at_least=1)
  alpha: float = setting(16.0, "updates count alpha / rank times", above=0)
  targets: tuple[str, ...] = setting(
    ("attn/q", "attn/v"), "matrices that are updated", nonempty=True
  )


@dataclasses.dataclass(frozen=True)
class ScoringSettings(Section):
  """How a re-ranker scores pairs."""

  section: ClassVar[str] = "reader.re_ranker"

  dtype: str = setting("bfloat16", "in which it multiplies", choices=WEIGHT_DTYPES)
  length: int = setting(256, "tokens of question and passage", at_least=8)


@dataclasses.dataclass(frozen=True)
class ReRankerSettings(TrainSettings, ScoringSettings):
  """The cross-encoder that re-ranks passages, and its training."""

  section: ClassVar[str] = "reader.re_ranker"

  base: str = setting(
    "minilm-l6-v2", "an encoder, or a CrossEncoder's folder", affects_result=False, nonempty=True
  )  # its fingerprint does
  train: str = setting("encoder", "what is trained", choices=("encoder", "lora", "head"))
  lora: ReRankerLora = setting(ReRankerLora(), "low-rank updates")
  positives: str = setting(
    "gold",
    "answers: the best passage found that holds an answer",
    choices=("gold", "answers"),
  )
  negatives: int = setting(7, "passages that a positive is told apart from", at_least=0)
  negatives_from: str = setting(
    "positives",
    "positives of other questions of a data set, or any passage found",
    choices=("positives", "corpus"),
  )
  in_batch: int = setting(
    0, "passages of other questions of the batch as further negatives", at_least=0
  )
  mining_depth: int = setting(30, "negatives are drawn from so many, the best ranked", at_least=1)
  drop_answers: bool = setting(True, "leave out negatives that hold an answer")
  steps: int = setting(300, "updates; 0: the base is taken as it is", at_least=0)
  batch_size: int = setting(8, "questions of an update", at_least=1)
  validate_every: int = setting(50, "steps between validations", at_least=1)
  validate_examples: int = setting(200, "validation questions", at_least=1)
  checkpoint_every: int = setting(50, "steps between checkpoints", affects_result=False, at_least=1)
  learning_rate: Mapping[str, float] = setting(
    {"encoder": 1e-4, "head": 1e-3, "lora": 1e-3}, "peak rate of each trained part", at_least=0
  )
  warmup_steps: int = setting(30, "steps in which the rate rises to its peak", at_least=0)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.steps:
      check_schedule(self)
    if self.trains and not self.negatives and not self.in_batch:
      raise UserError(
        f"config.{self.section}.negatives and in_batch are 0, so a positive is told apart from"
        " nothing; give one of them some, or no steps"
      )


@dataclasses.dataclass(frozen=True)
class LmRankingSettings(Section):
  """Ranking by the likelihood of the question under the frozen LM."""

  section: ClassVar[str] = "reader"

  lm_depth: int = setting(16, "passages ranked by the LM's likelihood", at_least=1)


@dataclasses.dataclass(frozen=True)
class ReaderSettings(RetrievalSettings, PackingSettings, LmRankingSettings):
  """The whole section; `data.train`, `data.validation` and `data.test` are then its questions."""

  corpus: str = setting(
    "world_facts", "the built-in one, or a file of passages", affects_result=False, nonempty=True
  )  # its fingerprint does
  questions: int = setting(
    1000,
    "the first so many training questions tune the reader, the others the re-ranker",
    at_least=1,
  )
  max_train_questions: int = setting(
    0, "training questions in all, the first so many; 0: all", at_least=0
  )
  budgets: tuple[int, ...] = setting(
    (256, 512), "tokens that the LM sees: prompt vectors, text and answer", at_least=1
  )
  rankings: tuple[str, ...] = setting(
    RANKINGS, "of passages, that the table compares", choices=RANKINGS
  )
  recall_at: tuple[int, ...] = setting(
    (1, 5, 20, 100), "ranks at which recall is taken", at_least=1, nonempty=True
  )
  ranking: str = setting("blended", "the ranking that a stage reads", choices=RANKINGS)
  budget: int = setting(512, "the budget of tokens that a stage reads", at_least=1)
  re_ranker: ReRankerSettings = setting(ReRankerSettings(), "the re-ranker")

  def __post_init__(self) -> None:
    super().__post_init__()
    for ranking in (self.ranking, *self.rankings):
      needed = ranking.removesuffix("_1")
      if needed in RETRIEVERS and needed not in self.retrievers:
        raise UserError(
          f"the ranking {ranking} needs {needed} among config.reader.retrievers; add it, or leave"
          " that ranking out of config.reader.rankings"
        )
    if min(self.recall_at) > self.depth:
      raise UserError(
        f"config.reader.recall_at is {self.recall_at}, and only config.reader.depth={self.depth}"
        " passages are retrieved; name a rank within them"
      )
