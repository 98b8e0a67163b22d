"""The re-ranker's stages: training it on what was retrieved, and ordering passages by its scores.

It trains on questions on which the reader is not tuned: on its own training questions it would rank
better than on new ones, and the reader's training contexts would not look like its test contexts.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.data.mining import Group, mined_groups
from frozen_jax.data.pairs import (
  LENGTHS,
  GroupBatches,
  GroupOptions,
  PairEncoder,
  validation_groups,
)
from frozen_jax.evaluation.likelihood import score
from frozen_jax.evaluation.pair_scores import score_pairs
from frozen_jax.export.cross_encoder import CrossEncoder, read_cross_encoder, write_cross_encoder
from frozen_jax.methods import re_ranker
from frozen_jax.retrieval.corpus import Corpus, Passage
from frozen_jax.sharding.hosts import host_shard
from frozen_jax.sharding.place import make_place
from frozen_jax.sharding.rules import row_groups
from frozen_jax.text.answers import contains, normalise
from frozen_jax.training.loop import Fit, FitOptions, fit
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import OptimizerOptions, make_optimizer

Row = Mapping[str, Any]  # of `retrieve.py`

STAGE = "re_ranker"
POSITIVES, NEGATIVES_AMONG = ("gold", "answers"), ("positives", "corpus")
_VALIDATED_AT_ONCE = 8  # questions
_REMEMBERED = 2**20  # passages whose positions are not looked up again
SCORED_AT_ONCE = 32  # questions, with all their passages


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """A re-ranker as it scores: of a CrossEncoder's folder."""

  method: re_ranker.ReRanker
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


def open_scorer(folder: pathlib.Path, options: Mapping[str, Any], mesh: Mesh) -> Scorer:
  """The re-ranker of a folder; `options`: the config's `reader.re_ranker`."""
  base = read_cross_encoder(str(folder), mesh=mesh, progress=False)
  method = re_ranker.build(
    base.encoder, base.head, base.initial_head, train="head", dtype=options["dtype"]
  )
  return Scorer(method, method.init(jax.random.key(0)), _pair_encoder(base, options), mesh)


def groups_of(
  rows: tuple[Iterable[Row], Iterable[Row]], corpus: Corpus, options: Mapping[str, Any]
) -> tuple[tuple[list[Group], list[Group]], int]:
  """The groups to train on and to validate on, and how many questions were left out of them.

  With `positives` of "gold" a question's passages are those that its row names, and one without
  any is the user's mistake. With "answers" it is the best passage found that holds an answer. With
  `negatives_among` of "positives" negatives are passages that answer another training question of
  the same data set (in validation: any other question), with "corpus" any. A question for which
  nothing is found as the one or the other is left out; UserError where none is left to train on.
  """
  for name, known in (("positives", POSITIVES), ("negatives_among", NEGATIVES_AMONG)):
    if options[name] not in known:
      raise UserError(
        f"reader.re_ranker.{name} is {options[name]!r}; it is one of {', '.join(known)}"
      )
  position = functools.lru_cache(_REMEMBERED)(corpus.position)
  label = lambda row: _Labelled.of(row, corpus, position, options["positives"])
  train, held_out = ([label(row) for row in split] for split in rows)
  asked = len(train) + len(held_out)
  if options["negatives_among"] == "positives":
    pools: dict[str, set[int]] = collections.defaultdict(set)
    for one in train:
      pools[one.dataset].update(one.positives)
    every = {at for one in (*train, *held_out) for at in one.positives}
    train = [one.among(pools[one.dataset]) for one in train]
    held_out = [one.among(every) for one in held_out]
  groups, checked = (_groups(split, corpus, options) for split in (train, held_out))
  if train and not groups:
    raise UserError(
      f"for none of {len(train)} training questions both a passage that answers it and one that"
      " does not were found; raise reader.depth, or set reader.re_ranker.negatives_among=corpus"
    )
  return (groups, checked), asked - len(groups) - len(checked)


def _groups(
  asked: Sequence["_Labelled"], corpus: Corpus, options: Mapping[str, Any]
) -> list[Group]:
  """The groups of those questions that have something to tell apart."""
  kept = [one for one in asked if one.positives or options["positives"] == "gold"]
  rows, positives, found = (
    [getattr(one, n) for one in kept] for n in ("row", "positives", "found")
  )
  text_of, depth = text_in(corpus), options["mining_depth"]
  mined = mined_groups(rows, positives, found, text_of, depth, options["drop_answers"])
  return [group for group in mined if group.negatives or options["in_batch"]]


class _Labelled(NamedTuple):
  """A question: its row without passages, its data set, where its answers stand, what was found."""

  row: Mapping[str, Any]
  dataset: str
  positives: list[int]
  found: list[int]

  @classmethod
  def of(
    cls, row: Row, corpus: Corpus, position: Callable[[str], int], positives: str
  ) -> "_Labelled":
    found = [position(context["id"]) for context in row["ctxs"]]
    if positives == "gold":
      own = [position(id) for id in row["positive_ids"]]
    else:
      wanted = [normalise(answer) for answer in row["answers"]]
      own = [at for at in found if contains(normalise(corpus[at].joined()), wanted)][:1]
    asked = {key: row[key] for key in ("id", "question", "answers")}
    return cls(asked, row.get("dataset", ""), own, found)

  def among(self, pool: Container[int]) -> "_Labelled":
    """With what was found of the pool alone."""
    return self._replace(found=[at for at in self.found if at in pool])


def text_in(corpus: Corpus) -> Callable[[Any], str]:
  """The text of a passage by its position, as retrievers and re-ranker read it."""
  return lambda at: corpus[at].joined()


def train_re_ranker(
  folder: pathlib.Path,
  groups: tuple[Sequence[Group], Sequence[Group]],
  corpus: Corpus,
  options: Mapping[str, Any],
  *,
  seed: int,
  mesh: Mesh,
  workdir: pathlib.Path,
  writer: MetricsWriter,
  inputs: Mapping[str, Any],
) -> Fit | None:
  """Trains on the first groups, validates on the others, writes a CrossEncoder's folder.

  Args:
    folder: what it is written to. options: the config's `reader.re_ranker`.
    workdir: holds the checkpoints; inputs: what they belong to.

  Returns how it was trained; None where `steps` is 0 and the base is taken as it is.

  Raises UserError as `training.loop.fit` and `export.cross_encoder`.
  """
  base = read_cross_encoder(options["base"], mesh=mesh)
  texts, method = _pair_encoder(base, options), _built(base, options)
  init_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
  fresh, frozen, result = method.init(init_key), method.frozen(), None
  if options["steps"]:
    result = fit(
      method,
      _optimizer(options, fresh),
      fresh,
      frozen,
      GroupBatches(
        groups[0],
        text_in(corpus),
        texts,
        options["batch_size"],
        GroupOptions(options["negatives"], options["in_batch"]),
        seed,
        host_shard(mesh),
        options["accumulate"] * row_groups(mesh),
      ),
      stage=STAGE,
      options=_fit_options(options),
      key=key,
      mesh=mesh,
      workdir=workdir,
      writer=writer,
      config=dict(inputs),
      fingerprint=base.encoder.fingerprint,
      validate=_validator(method, frozen, groups[1], corpus, texts, options, mesh),
    )
  trained = fresh if result is None else result.best
  weights = method.weights(trained, frozen)
  write_cross_encoder(folder, base.encoder, weights, base.head, trained["head"], texts.lengths[-1])
  return result


def re_ranked(rows: Iterable[Row], scorer: Scorer, depth: int) -> Iterator[dict[str, Any]]:
  """The rows with the first `depth` passages of each in the order of the re-ranker's scores.

  Of equal scores the earlier passage comes first.
  """
  rows = iter(rows)
  while block := list(itertools.islice(rows, SCORED_AT_ONCE)):
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


def _built(base: CrossEncoder, options: Mapping[str, Any]) -> re_ranker.ReRanker:
  """The re-ranker that `reader.re_ranker` asks for, over a base."""
  lora = re_ranker.LoraOptions(**{**options["lora"], "targets": tuple(options["lora"]["targets"])})
  return re_ranker.build(
    base.encoder,
    base.head,
    base.initial_head,
    train=options["train"],
    lora=lora,
    dtype=options["dtype"],
  )


def _pair_encoder(base: CrossEncoder, options: Mapping[str, Any]) -> PairEncoder:
  sizes = base.encoder.config
  lengths = [length for length in LENGTHS if length <= options["length"]]
  return PairEncoder(base.encoder.tokenizer, sizes.types, sizes.room, lengths)


def _optimizer(options: Mapping[str, Any], fresh: Tree) -> Any:
  rates = {key: options["learning_rate"][key] for key in fresh}
  shared = ("warmup_steps", "final_fraction", "weight_decay", "clip_norm")
  chosen = OptimizerOptions(learning_rate=rates, **{key: options[key] for key in shared})
  return make_optimizer(chosen, options["steps"])


def _fit_options(options: Mapping[str, Any]) -> FitOptions:
  names = ("steps", "accumulate", "log_every", "validate_every", "checkpoint_every", "patience")
  chosen = {name: options[name] for name in names}
  # A loss grows by what the scores are too sure of, which changes no order.
  return FitOptions(validate_first=True, best_by="accuracy", **chosen)


def _validator(
  method: re_ranker.ReRanker,
  frozen: Tree,
  groups: Sequence[Group],
  corpus: Corpus,
  texts: PairEncoder,
  options: Mapping[str, Any],
  mesh: Mesh,
) -> Callable[[Tree], Mapping[str, float]] | None:
  """The listwise loss on held-out groups; None where there are none."""
  if not groups:
    return None
  rows = -(-_VALIDATED_AT_ONCE // row_groups(mesh)) * row_groups(mesh)
  batches = list(
    validation_groups(
      groups, text_in(corpus), texts, rows, max(options["negatives"], 1), row_groups(mesh)
    )
  )
  place = make_place(mesh)
  return lambda trained: score(method, trained, frozen, batches, place)
