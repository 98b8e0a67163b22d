"""The job before the stages: retrieve, train the re-ranker, re-rank, pack; each where it is due.

The files stand in WORKDIR/reader, see `steps.py`. A stage of the run then reads the packed prompts
that its `reader.read` (an order of `pack.py`) and `reader.budget` name.
"""

import copy
import functools
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from frozen_jax.core.errors import UserError
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.data.mining import Group
from frozen_jax.retrieval.fid_rows import read_rows
from frozen_jax.run import options as experiment
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.reader import blend, pack, re_rank
from frozen_jax.run.reader.defaults import ORDERS
from frozen_jax.run.reader.questions import Asked, digest_of, open_asked, open_passages
from frozen_jax.run.reader.retrieve import SEARCHED_AT_ONCE, Retrieval
from frozen_jax.run.report import write_json
from frozen_jax.run.steps import Steps, digest, key
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.metrics import MetricsWriter

FOLDER = "reader"  # within a workdir
RE_RANKER, BLEND = "re_ranker", "blend_weights.json"
UNTIL = ("retrieve", "re_ranker", "re_rank", "pack")
SPLITS = ("train", "validation", "test")
_LOG = logging.getLogger(__name__)

# What of the re-ranker's options its numbers do not depend on.
_FREE = ("log_every", "checkpoint_every")

Key = tuple[str, int]  # an order and a budget


class Job:
  """The job of one workdir; `prepare` brings it up to date."""

  def __init__(
    self, options: experiment.Options, lm: FrozenLM, folder: pathlib.Path, mesh: Mesh | None = None
  ):
    """Opens the corpus and the questions.

    Raises UserError for orders, budgets or questions that are none, and whatever cannot be read.
    """
    self.options, self._lm = copy.deepcopy(options), lm
    self._reader = self.options["reader"]
    self._mesh = mesh or lm.mesh or make_mesh()
    check(self.options, lm)
    self.steps = Steps(folder / FOLDER)
    self.corpus = open_passages(self._reader["corpus"], self.steps)
    self.retrieval = Retrieval(self._reader, self.corpus, self.steps, self._mesh)
    self._read = {name: _read_by(self.options, name) for name in self.options["order"]}

  def prepare(self, writer: MetricsWriter, until: str = "") -> experiment.Options:
    """Makes what is not there yet, up to the step `until` ("": all).

    Returns the run's options with the packed files as the data of its stages.
    """
    self._retrieve()
    if until == "retrieve":
      return self.options
    if {"re_ranked", "blended"} & self._orders():
      self._train_re_ranker(writer)
      if until == "re_ranker":
        return self.options
      for split in self._splits("re_ranked", until):
        self._ranked("re_ranked", split)
    if "blended" in self._orders():
      self._blend(self._splits("blended", until))
    if "lm" in self._orders():
      for split in self._splits("lm", until):
        self._ranked("lm", split)
    if until in ("re_ranker", "re_rank"):
      return self.options
    for name, order_and_budget in self._read.items():
      paths = {split: self._packed(*order_and_budget, split) for split in SPLITS}
      stage = self.options["stages"][name]
      stage["data"] = stage.get("data", {}) | {split: str(path) for split, path in paths.items()}
      # Packs of the same name may be made of other files: a checkpoint belongs to these.
      stage["made_data"] = {split: self.steps.digests[path.name] for split, path in paths.items()}
    for order, budget in self.compared():
      self._packed(order, budget, "test")
    return self.options

  def compared(self) -> list[Key]:
    """The orders and budgets that the table compares."""
    return list(itertools.product(self._reader["orders"], self._reader["budgets"]))

  def test_pack(self, order: str, budget: int) -> pathlib.Path:
    """The packed test questions of an order and a budget."""
    return self.steps.path(_pack_name(order, budget, "test"))

  def made(self, order: str) -> bool:
    """Whether the test questions' passages stand in that order already."""
    return f"{_source(order)}_test.jsonl" in self.steps.digests

  def rows(self, order: str, split: str = "test") -> Iterator[Mapping[str, Any]]:
    """The rows with the passages of that order: as retrieved, or re-ranked."""
    return read_rows(self.steps.path(f"{_source(order)}_{split}.jsonl"))

  def read(self, questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Questions `{"id", "question", "answers"?}` -> rows for the last stage: prompt, passages.

    Raises UserError for what is no question, and where the re-ranker that is needed is not there.
    """
    order, budget = self._read[self.options["order"][-1]]
    asked = []
    for row in questions:
      if "question" not in row:
        raise UserError(
          f'{row["id"]} is no question; a reader takes lines of text, or {{"question"}} rows'
        )
      asked.append(Asked(row["id"], row["question"], tuple(row.get("answers") or ()), ()))
    rows: Iterable[Mapping[str, Any]] = self.retrieval.rows(asked)
    if order in ("re_ranked", "blended"):
      needed = self.steps.path(BLEND if order == "blended" else RE_RANKER)
      if not needed.exists():
        raise UserError(f"there is no {needed}; let the run there come to its end")
      rows = re_rank.re_ranked(rows, self._scorer, self.retrieval.depth)
      rows = blend.blended(rows, self._weights()) if order == "blended" else rows
    elif order == "lm":
      rows = self._by_likelihood(rows)
    return list(pack.packed(rows, order, self.corpus, self._packer(order, budget)))

  def _orders(self) -> set[str]:
    return {order for order, _ in self._read.values()} | set(self._reader["orders"])

  def _splits(self, order: str, until: str) -> tuple[str, ...]:
    """The splits for which an order is needed; `blended` is made of `re_ranked` and weighs it.

    Training questions are needed for the packing alone, and are many.
    """
    read = {of for of, _ in self._read.values()}
    if until != "re_rank" and (order in read or (order == "re_ranked" and "blended" in read)):
      return SPLITS
    weighed = order == "re_ranked" and "blended" in self._orders()
    return SPLITS[1:] if weighed else SPLITS[2:]

  def _retrieve(self) -> None:
    data = self.options["data"]
    most = {
      "train": 0,
      "validation": max(
        self.options["train"]["validate_examples"],
        self._reader["re_ranker"]["validate_questions"],
      ),
      "test": self.options["evaluate"]["max_examples"],
    }
    for split in SPLITS:
      asked = open_asked(data[split], data["fields"], self.corpus, most[split])
      inputs = {"questions": digest_of(asked), **self.retrieval.fingerprint}
      make = functools.partial(self._found, asked)
      self.steps.rows(f"retrieved_{split}.jsonl", inputs, make, SEARCHED_AT_ONCE, len(asked))

  def _found(self, asked: Sequence[Asked], first: int) -> Iterator[Mapping[str, Any]]:
    return self.retrieval.rows(asked[first:])

  def _train_re_ranker(self, writer: MetricsWriter) -> None:
    options = self._reader["re_ranker"]
    base = pathlib.Path(options["base"])
    inputs = {
      "options": {name: value for name, value in options.items() if name not in _FREE},
      "base": digest(base) if base.is_dir() else options["base"],
      "seed": self.options["seed"],
      "reader_questions": self._reader["questions"],
      **{f"retrieved_{s}": self.steps.digests[f"retrieved_{s}.jsonl"] for s in SPLITS[:2]},
    }

    def make(folder: pathlib.Path) -> None:
      groups: tuple[list[Group], list[Group]] = ([], [])
      if options["steps"]:
        others = itertools.islice(self.rows("fused", "train"), self._reader["questions"], None)
        held_out = itertools.islice(self.rows("fused", "validation"), options["validate_questions"])
        groups, left_out = re_rank.groups_of((others, held_out), self.corpus, options)
        if left_out:
          _LOG.info("re-ranker: %d questions left out: no passages to tell apart", left_out)
      re_rank.train_re_ranker(
        folder,
        groups,
        self.corpus,
        options,
        seed=self.options["seed"],
        mesh=self._mesh,
        workdir=self.steps.path(f"training-{key(inputs)}"),
        writer=writer,
        inputs=inputs,
      )

    self.steps.tree(RE_RANKER, inputs, make)

  def _ranked(self, order: str, split: str) -> None:
    """Orders the passages of a split by the re-ranker, or by the LM."""
    # All validation questions by the re-ranker: the weights of `blended` stand on them.
    every = order == "re_ranked" and split == "validation"
    count = None if every else self._count(split)
    inputs = {"of": self.steps.digests[f"retrieved_{split}.jsonl"], "questions": count}
    options = self._reader["re_ranker"]
    if order == "re_ranked":
      inputs |= {name: options[name] for name in ("length", "dtype")}
      inputs |= {"re_ranker": self.steps.digests[RE_RANKER]}
    else:
      inputs |= {"lm": self._lm.fingerprint, "tokenizer": tokenizer_hash(self._lm.tokenizer)}
      inputs |= {name: self._reader[name] for name in ("template", "lm_depth")}

    def make(first: int) -> Iterator[Mapping[str, Any]]:
      rows = itertools.islice(self.rows("fused", split), first, count)
      if order == "lm":
        return self._by_likelihood(rows)
      return re_rank.re_ranked(rows, self._scorer, self.retrieval.depth)

    at_once = pack.RANKED_AT_ONCE if order == "lm" else re_rank.SCORED_AT_ONCE
    self.steps.rows(f"{_source(order)}_{split}.jsonl", inputs, make, at_once, count)

  def _blend(self, splits: Sequence[str]) -> None:
    """Weighs re-ranker and retrievers on validation questions, and orders passages by their sum."""
    of = self.steps.digests["re_ranked_validation.jsonl"]

    def make(path: pathlib.Path) -> None:
      write_json(path, blend.fit_weights(self.rows("re_ranked", "validation")))

    self.steps.file(BLEND, {"of": of}, make)
    _LOG.info("blended: %s", ", ".join(f"{k} {w:.2f}" for k, w in self._weights().items()))
    for split in splits:
      inputs = {"of": self.steps.digests[f"re_ranked_{split}.jsonl"]}
      inputs |= {"weights": self.steps.digests[BLEND]}
      made = functools.partial(self._blended, split)
      self.steps.rows(f"blended_{split}.jsonl", inputs, made, pack.PACKED_AT_ONCE)

  def _blended(self, split: str, first: int) -> Iterator[Mapping[str, Any]]:
    rows = itertools.islice(self.rows("re_ranked", split), first, None)
    return blend.blended(rows, self._weights())

  def _weights(self) -> dict[str, float]:
    return json.loads(self.steps.path(BLEND).read_text())

  @functools.cached_property
  def _scorer(self) -> re_rank.Scorer:
    """The trained re-ranker, read once."""
    return re_rank.open_scorer(self.steps.path(RE_RANKER), self._reader["re_ranker"], self._mesh)

  def _by_likelihood(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    size = self.options["evaluate"]["batch_size"]
    return pack.by_likelihood(rows, self._lm, self._reader, size)

  def _packed(self, order: str, budget: int, split: str) -> pathlib.Path:
    source, count = f"{_source(order)}_{split}.jsonl", self._count(split)
    inputs = {
      "of": self.steps.digests[source],
      "corpus": self.corpus.fingerprint,
      "questions": count,
      "tokenizer": tokenizer_hash(self._lm.tokenizer),
      **{name: self._reader[name] for name in ("template", "best", "overflow", "most")},
      "vectors": self.options["prompt"]["length"],
      "answer": self.options["evaluate"]["max_new_tokens"],
    }

    def make(first: int) -> Iterator[Mapping[str, Any]]:
      rows = itertools.islice(self.rows(order, split), first, count)
      return pack.packed(rows, order, self.corpus, self._packer(order, budget))

    name = _pack_name(order, budget, split)
    return self.steps.rows(name, inputs, make, pack.PACKED_AT_ONCE, count)

  def _packer(self, order: str, budget: int) -> Any:
    vectors, answer = self.options["prompt"]["length"], self.options["evaluate"]["max_new_tokens"]
    return pack.make_packer(self._lm, self._reader, budget, order, vectors, answer)

  def _count(self, split: str) -> int | None:
    """How many questions of a split the reader is given; None: all."""
    validated = self.options["train"]["validate_examples"]
    return {"train": self._reader["questions"], "validation": validated, "test": None}[split]


def check(options: experiment.Options, lm: FrozenLM) -> None:
  """UserError for orders, budgets or a last step that cannot be."""
  reader = options["reader"]
  pack.template(reader)
  if options["until"] and options["until"] not in UNTIL:
    raise UserError(f"until is {options['until']!r}; it is empty or one of {', '.join(UNTIL)}")
  asked = [_read_by(options, name) for name in options["order"]]
  for order in [*reader["orders"], *(order for order, _ in asked)]:
    if order not in ORDERS:
      raise UserError(f"{order!r} is no order of passages; there are: {', '.join(ORDERS)}")
  if reader["questions"] < 1:
    raise UserError(f"reader.questions is {reader['questions']}; give at least 1")
  widest = max([*reader["budgets"], *(budget for _, budget in asked)])
  room = min(lm.config.context, options["data"]["lengths"][-1] + options["prompt"]["length"])
  if widest > room:
    raise UserError(
      f"a budget of {widest} tokens is more than the {room} that the model's context and"
      " data.lengths hold; lower reader.budgets and reader.budget, or raise data.lengths"
    )


def _read_by(options: experiment.Options, name: str) -> Key:
  """The order and the budget that a stage reads."""
  reader = experiment.stage_options(options, name)["reader"]
  return reader["read"], reader["budget"]


def _source(order: str) -> str:
  own = {"re_ranked": "re_ranked", "blended": "blended", "lm": "lm_ranked"}
  return own.get(order, "retrieved")


def _pack_name(order: str, budget: int, split: str) -> str:
  return f"packed_{order}_{budget}_{split}.jsonl"
