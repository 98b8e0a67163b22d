"""The `reader` section of a config. Imports no jax.

What an artifact depends on is a base class of its own, so that it is named in one place.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.settings import PackingSettings, RetrievalSettings
from frozen_jax.training.settings import TrainSettings

# Of passages; see pack.py.
RANKINGS = ("none", "bm25_1", "bm25", "dense", "fused", "lm", "re_ranked", "blended", "gold")
READER_STEPS = ("retrieve", "re_ranker", "re_rank", "pack")


@dataclasses.dataclass(frozen=True)
class ReRankerLora:
  """Low-rank updates of the encoder, with `train=lora`."""

  rank: int = setting(8, "of the updates")
  alpha: float = setting(16.0, "updates count alpha / rank times")
  targets: tuple[str, ...] = setting(("attn/q", "attn/v"), "matrices that are updated")


@dataclasses.dataclass(frozen=True)
class ScoringSettings:
  """How a re-ranker scores pairs."""

  dtype: str = setting("bfloat16", "in which it multiplies: float32 or bfloat16")
  length: int = setting(256, "tokens of question and passage")


@dataclasses.dataclass(frozen=True)
class ReRankerSettings(TrainSettings, ScoringSettings):
  """The cross-encoder that re-ranks passages, and its training."""

  section: ClassVar[str] = "reader.re_ranker"

  base: str = setting(
    "minilm-l6-v2", "an encoder, or a CrossEncoder's folder", affects_result=False
  )  # its fingerprint does
  train: str = setting("encoder", "what is trained", choices=("encoder", "lora", "head"))
  lora: ReRankerLora = setting(ReRankerLora(), "low-rank updates")
  positives: str = setting(
    "gold", "or answers: the best passage found that holds an answer", choices=("gold", "answers")
  )
  negatives: int = setting(7, "passages that a positive is told apart from")
  negatives_from: str = setting(
    "positives",
    "of other questions of a data set; or corpus: any passage found",
    choices=("positives", "corpus"),
  )
  in_batch: int = setting(0, "passages of other questions of the batch as further negatives")
  mining_depth: int = setting(30, "negatives are drawn from so many, the best ranked")
  drop_answers: bool = setting(True, "leave out negatives that hold an answer")
  steps: int = setting(300, "updates; 0: the base is taken as it is")
  batch_size: int = setting(8, "questions of an update")
  validate_every: int = setting(50, "steps between validations")
  validate_examples: int = setting(200, "validation questions")
  checkpoint_every: int = setting(50, "steps between checkpoints", affects_result=False)
  learning_rate: Mapping[str, float] = setting(
    {"encoder": 1e-4, "head": 1e-3, "lora": 1e-3}, "peak rate of each trained part"
  )
  warmup_steps: int = setting(30, "steps in which the rate rises to its peak")


@dataclasses.dataclass(frozen=True)
class LmRankingSettings:
  """Ranking by the likelihood of the question under the frozen LM."""

  lm_depth: int = setting(16, "passages ranked by the LM's likelihood")


@dataclasses.dataclass(frozen=True)
class ReaderSettings(RetrievalSettings, PackingSettings, LmRankingSettings):
  """The whole section; `data.train`, `data.validation` and `data.test` are then its questions."""

  corpus: str = setting(
    "world_facts", "the built-in one, or a file of passages", affects_result=False
  )  # its fingerprint does
  questions: int = setting(
    1000, "the first so many training questions tune the reader, the others the re-ranker"
  )
  budgets: tuple[int, ...] = setting(
    (256, 512), "tokens that the LM sees: prompt vectors, text and answer"
  )
  rankings: tuple[str, ...] = setting(RANKINGS, "of passages, that the table compares")
  recall_at: tuple[int, ...] = setting((1, 5, 20, 100), "ranks at which recall is taken")
  ranking: str = setting("blended", "the ranking that a stage reads", choices=RANKINGS)
  budget: int = setting(512, "the budget of tokens that a stage reads")
  re_ranker: ReRankerSettings = setting(ReRankerSettings(), "the re-ranker")

  def __post_init__(self) -> None:
    RetrievalSettings.__post_init__(self)
    PackingSettings.__post_init__(self)
    for ranking in self.rankings:
      if ranking not in RANKINGS:
        raise UserError(f"{ranking!r} is no ranking of passages; there are: {', '.join(RANKINGS)}")
    if self.questions < 1:
      raise UserError(f"reader.questions is {self.questions}; give at least 1")
