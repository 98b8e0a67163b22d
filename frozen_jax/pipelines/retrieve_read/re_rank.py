"""The re-ranker: training it on what was retrieved, and ranking passages by its scores.

It trains on questions on which the reader is not tuned: on its own training questions it would rank
better than on new ones, and the reader's training contexts would not look like its test contexts.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from frozen_jax.backbones import hub
from frozen_jax.config.section import section_values
from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import Row
from frozen_jax.core.reading import local_folder
from frozen_jax.core.seeds import seed32
from frozen_jax.core.types import Tree
from frozen_jax.core.user_path import user_path
from frozen_jax.data.batch_texts import group_texts
from frozen_jax.data.mining import Group, mine_groups
from frozen_jax.data.pair_encoder import LENGTHS, PairEncoder
from frozen_jax.data.pairs import GroupBatches, GroupOptions, validation_batches
from frozen_jax.evaluation.pair_scores import score_pairs
from frozen_jax.evaluation.teacher_forced import teacher_forced_scores
from frozen_jax.export.cross_encoder import CrossEncoder, read_cross_encoder, write_cross_encoder
from frozen_jax.methods.lora import LoraSettings
from frozen_jax.methods.re_ranker import ReRanker
from frozen_jax.models.tuned_model import batch_loss
from frozen_jax.pipelines.artifacts import digest
from frozen_jax.pipelines.retrieve_read.settings import ReRankerSettings
from frozen_jax.retrieval.corpus import Corpus, Passage
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.hosts import host_shard
from frozen_jax.sharding.rules import row_groups
from frozen_jax.text.answers import contains, normalise
from frozen_jax.training.loop import StageRun, fit
from frozen_jax.training.optimizer import learning_rates, make_optimizer
from frozen_jax.training.result import TrainingResult
from frozen_jax.training.state import copy_tree

STAGE = "re_ranker"
_LOG = logging.getLogger(__name__)
_VALIDATION_QUESTIONS = 8  # questions
_CACHED_POSITIONS = 2**20  # passages whose positions are not looked up again
SCORING_BLOCK = 32  # questions, with all their passages


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """A re-ranker as it scores: of a CrossEncoder's folder."""

  method: ReRanker
  trained: Tree
  texts: PairEncoder
  mesh: Mesh

  def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The score of each (question, passage)."""
    frozen = self.method.frozen()
    found = score_pairs(
      self.method, self.trained, frozen, self.texts, pairs, self.mesh, progress=False
    )
    return [float(value) for value in found]


def open_scorer(folder: pathlib.Path, settings: ReRankerSettings, mesh: Mesh) -> Scorer:
  """The re-ranker of a folder; `settings`: the config's `reader.re_ranker`."""
  base = read_cross_encoder(str(folder), mesh=mesh, progress=False)
  method = ReRanker.build(
    base.encoder, base.head, base.initial_head, train="head", dtype=settings.dtype
  )
  return Scorer(method, method.init(jax.random.key(0)), _pair_encoder(base, settings), mesh)


def training_groups(
  rows: tuple[Iterable[Row], Iterable[Row]], corpus: Corpus, settings: ReRankerSettings
) -> tuple[tuple[list[Group], list[Group]], int]:
  """The groups to train on and to validate on, and how many questions were left out of them.

  With `positives` of "gold" a question's passages are those that its row names, and one without
  any is the user's mistake. With "answers" it is the best passage found that holds an answer. With
  `negatives_from` of "positives" negatives are passages that answer another training question of
  the same data set (in validation: any other question), with "corpus" any. A question for which
  nothing is found as the one or the other is left out; UserError where none is left to train on.
  """
  position = functools.lru_cache(_CACHED_POSITIONS)(corpus.position)
  label = lambda row: _LabelledQuestion.of(row, corpus, position, settings.positives)
  train, held_out = ([label(row) for row in split] for split in rows)
  asked = len(train) + len(held_out)
  if settings.negatives_from == "positives":
    pools: dict[str, set[int]] = collections.defaultdict(set)
    for one in train:
      pools[one.dataset].update(one.positives)
    every = {at for one in (*train, *held_out) for at in one.positives}
    train = [one.restricted_to(pools[one.dataset]) for one in train]
    held_out = [one.restricted_to(every) for one in held_out]
  groups, checked = (_groups(split, corpus, settings) for split in (train, held_out))
  if train and not groups:
    raise UserError(
      f"for none of {len(train)} training questions both a passage that answers it and one that"
      " does not were found; raise reader.depth, or set reader.re_ranker.negatives_from=corpus"
    )
  return (groups, checked), asked - len(groups) - len(checked)


def _groups(
  asked: Sequence["_LabelledQuestion"], corpus: Corpus, settings: ReRankerSettings
) -> list[Group]:
  """The groups of those questions that have something to tell apart."""
  labelled = [one for one in asked if one.positives or settings.positives == "gold"]
  rows, positives, found = (
    [getattr(one, n) for one in labelled] for n in ("row", "positives", "found")
  )
  text_of, depth = text_in(corpus), settings.mining_depth
  mined = mine_groups(rows, positives, found, text_of, depth, settings.drop_answers)
  return [group for group in mined if group.negatives or settings.in_batch]


class _LabelledQuestion(NamedTuple):
  """A question: its row without passages, its data set, where its answers stand, what was found."""

  row: Row
  dataset: str
  positives: list[int]
  found: list[int]

  @classmethod
  def of(
    cls, row: Row, corpus: Corpus, position: Callable[[str], int], positives: str
  ) -> "_LabelledQuestion":
    found = [position(context["id"]) for context in row["ctxs"]]
    if positives == "gold":
      own = [position(id) for id in row["positive_ids"]]
    else:
      wanted = [normalise(answer) for answer in row["answers"]]
      own = [at for at in found if contains(normalise(corpus[at].joined()), wanted)][:1]
    asked = {key: row[key] for key in ("id", "question", "answers")}
    return cls(asked, row.get("dataset", ""), own, found)

  def restricted_to(self, pool: Container[int]) -> "_LabelledQuestion":
    """With what was found of the pool alone."""
    return self._replace(found=[at for at in self.found if at in pool])


def text_in(corpus: Corpus) -> Callable[[Any], str]:
  """The text of a passage by its position, as retrievers and re-ranker read it."""
  return lambda at: corpus[at].joined()


def train_re_ranker(
  folder: pathlib.Path,
  groups: tuple[Sequence[Group], Sequence[Group]],
  corpus: Corpus,
  settings: ReRankerSettings,
  seed: int,
  run: StageRun,
) -> TrainingResult | None:
  """Trains on the first groups, validates on the others, writes a CrossEncoder's folder.

  Args:
    folder: what it is written to.
    run: where it is trained; of another base model its fingerprint is replaced.

  Returns how it was trained; None where there are no steps and the base is taken as it is.

  Raises UserError as `training.loop.fit` and `export.cross_encoder`.
  """
  base = read_cross_encoder(settings.base, mesh=run.mesh)
  texts, method = _pair_encoder(base, settings), _build(base, settings)
  init_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed32(seed)), 1))
  start, frozen, result = method.init(init_key), method.frozen(), None
  if settings.trains:
    settings = _in_steps(settings, len(groups[0]))
    batches = GroupBatches(
      groups[0],
      text_in(corpus),
      texts,
      settings.batch_size,
      GroupOptions(settings.negatives, settings.in_batch),
      seed,
      host_shard(run.mesh),
      settings.accumulate * row_groups(run.mesh),
    )
    result = fit(
      method,
      make_optimizer(settings, learning_rates(settings, {}, start), method.no_decay),
      start,
      frozen,
      batches,
      settings,
      dataclasses.replace(
        run,
        fingerprint=base.encoder.fingerprint,
        texts=functools.partial(group_texts, encoder=texts),
      ),
      key,
      validate=_validator(method, frozen, groups[1], corpus, texts, settings, run.mesh),
      validate_first=True,
      best_by="accuracy",  # a loss grows by what the scores are too sure of: no ranking changes
    )
    if truncated := batches.counts["truncated"]:
      _LOG.warning(
        "re-ranker: %d passages were truncated to %d tokens", truncated, texts.lengths[-1]
      )
  trained = start if result is None else result.best
  weights = copy_tree(method.weights(trained, frozen), run.mesh)  # all of them, on every host
  write_cross_encoder(folder, base.encoder, weights, base.head, trained["head"], texts.lengths[-1])
  return result


def _in_steps(settings: ReRankerSettings, groups: int) -> ReRankerSettings:
  """The settings with the steps that their epochs take, which are said."""
  resolved = settings.for_rows(groups)
  if settings.epochs:
    said = (resolved.steps, settings.epochs, groups)
    _LOG.info("re-ranker: %d steps, %g epochs of %d questions", *said)
  return resolved


def base_fingerprint(settings: ReRankerSettings) -> str:
  """Names the base's weights: the digest of a folder, also of the hub's, else the pinned name."""
  is_of_hub = settings.base.startswith(hub.PREFIX)
  base = hub.fetch(settings.base) if is_of_hub else user_path(settings.base)
  return digest(local_folder(base, hub.wanted_files)) if base.is_dir() else settings.base


def re_rank(rows: Iterable[Row], scorer: Scorer, depth: int) -> Iterator[Row]:
  """The rows with the first `depth` passages of each in the order of the re-ranker's scores.

  Of equal scores the earlier passage comes first.
  """
  rows = iter(rows)
  while block := list(itertools.islice(rows, SCORING_BLOCK)):
    pairs = [
      (row["question"], Passage("", one["title"], one["text"]).joined())
      for row in block
      for one in row["ctxs"][:depth]
    ]
    scores = iter(scorer.scores(pairs))
    for row in block:
      scored = [one | {"score": next(scores)} for one in row["ctxs"][:depth]]
      scored.sort(key=lambda one: -one["score"])
      yield {**row, "ctxs": scored}


def _build(base: CrossEncoder, settings: ReRankerSettings) -> ReRanker:
  """The re-ranker that `reader.re_ranker` asks for, over a base."""
  return ReRanker.build(
    base.encoder,
    base.head,
    base.initial_head,
    train=settings.train,
    lora=LoraSettings(**section_values(settings.lora)),
    dtype=settings.dtype,
  )


def _pair_encoder(base: CrossEncoder, settings: ReRankerSettings) -> PairEncoder:
  sizes = base.encoder.config
  lengths = [length for length in LENGTHS if length <= settings.length]
  return PairEncoder(
    base.encoder.tokenizer, sizes.types, sizes.max_tokens, lengths, sizes.vocab_size
  )


def _validator(
  method: ReRanker,
  frozen: Tree,
  groups: Sequence[Group],
  corpus: Corpus,
  texts: PairEncoder,
  settings: ReRankerSettings,
  mesh: Mesh,
) -> Callable[[Tree], Mapping[str, float]] | None:
  """The listwise loss on held-out groups; None where there are none."""
  if not groups:
    return None
  parts, negatives = row_groups(mesh), max(settings.negatives, 1)
  rows = -(-_VALIDATION_QUESTIONS // parts) * parts
  batches = list(validation_batches(groups, text_in(corpus), texts, rows, negatives, parts))
  return lambda trained: teacher_forced_scores(
    functools.partial(batch_loss, method, trained, frozen),
    batches,
    functools.partial(shard_batch, mesh=mesh),
  )
