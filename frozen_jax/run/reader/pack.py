"""Packing the passages of each question into prompts, in every order that is compared.

  none       no passages: closed book           bm25, dense  as that retriever found them
  bm25_1     the best of BM25 alone             fused        as retrieved
  gold       those known to answer: the bound   re_ranked    by the trained re-ranker
  blended    by a weighted sum of the re-ranker's score and the retrievers'
  lm         by the likelihood of the question behind the passage under the frozen LM, as zero-shot
             re-ranking of in-context RALM (Ram et al. 2023)

Training and test prompts are packed by the same code (METHODS 3). What is written are rows that the
run's stages read: `{"id", "asked", "input", "target", "answers", "passages",
"tokens"}`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.evaluation.rank_classification import Question, choice_likelihoods
from frozen_jax.methods import METHODS
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.retrieval.packing import Packer, PackingOptions, ReaderTemplate
from frozen_jax.run.frozen_lm import FrozenLM

RANKED_AT_ONCE = 16  # questions, with as many passages as the LM ranks
PACKED_AT_ONCE = 256

Row = Mapping[str, Any]


def template(options: Mapping[str, Any]) -> ReaderTemplate:
  """The template of the config's `reader`; UserError for a malformed one."""
  given = options["template"]
  return ReaderTemplate(given["prompt"], given["passage"], given["bare"], given["separator"])


def make_packer(
  lm: FrozenLM, options: Mapping[str, Any], budget: int, order: str, vectors: int, answer: int
) -> Packer:
  """The packer of a budget and an order; `options`: the config's `reader`."""
  most = {"none": 0, "bm25_1": 1}.get(order, options["most"])
  chosen = PackingOptions(budget, answer, vectors, options["best"], options["overflow"], most)
  return Packer(lm.tokenizer, chosen, template(options))


def ordered(row: Row, order: str, corpus: Corpus) -> tuple[Sequence[Row], list[float]]:
  """The passages of a row in an order, best first, and their scores (falling ranks where none).

  The row is one of `retrieve.py` for the orders of retrievers, else one of that order itself.
  """
  if order == "none":
    return [], []
  if order in ("fused", "re_ranked", "blended", "lm"):
    return row["ctxs"], [context["score"] for context in row["ctxs"]]
  if order == "gold":
    ids: Sequence[str] = row["positive_ids"]
  else:
    name = order.removesuffix("_1")
    if name not in row["orders"]:
      raise UserError(f"the order {order} needs {name} among reader.retrievers; add it")
    ids = row["orders"][name]
  passages = [corpus[corpus.position(id)]._asdict() for id in ids]
  return passages, [float(-rank) for rank in range(len(ids))]


def packed(
  rows: Iterable[Row], order: str, corpus: Corpus, packer: Packer
) -> Iterator[dict[str, Any]]:
  """A row for the stages of each row: its prompt with what fits into the budget.

  `passages` stand as in the prompt, with their scores; `tokens` counts the prompt's.
  """
  for row in rows:
    passages, scores = ordered(row, order, corpus)
    texts = [(one["title"], one["text"]) for one in passages]
    made = packer.pack(row["question"], texts, scores)
    answers = row["answers"]
    read = [
      {"id": passages[at]["id"], "title": passages[at]["title"], "score": scores[at]}
      for at in made.chosen
    ]
    yield {
      "id": row["id"],
      "asked": row["question"],
      "input": made.prompt,
      **({"target": answers[0], "answers": answers} if answers else {}),
      "passages": read,
      "tokens": made.tokens,
      "cut": made.cut,
      "too_long": made.too_long,
    }


def by_likelihood(
  rows: Iterable[Row], lm: FrozenLM, options: Mapping[str, Any], batch_size: int
) -> Iterator[dict[str, Any]]:
  """The rows with their first `lm_depth` passages by how likely each makes the question.

  The score is the log-likelihood in nats of the question behind the passage. A passage that leaves
  the question no room in the LM's context is cut.
  """
  rows = iter(rows)
  while block := list(itertools.islice(rows, RANKED_AT_ONCE)):
    yield from _ranked_by_likelihood(block, lm, options, batch_size)


def _ranked_by_likelihood(
  rows: Sequence[Row], lm: FrozenLM, options: Mapping[str, Any], batch_size: int
) -> Iterator[dict[str, Any]]:
  form, depth = template(options), options["lm_depth"]
  method, tokenizer = METHODS["zero_shot"](lm, {}), lm.tokenizer
  questions = []
  for row in rows:
    choice = tokenizer(" " + row["question"], add_special_tokens=False, verbose=False)["input_ids"]
    behind = tokenizer("\n\nQuestion:", add_special_tokens=False, verbose=False)["input_ids"]
    room = lm.config.context - len(choice) - len(behind)
    if room < 1:
      start = row["question"][:60]
      raise UserError(f"the question {start!r} is longer than the context; shorten it")
    for one in row["ctxs"][:depth]:
      text = tokenizer(form.one(one["title"], one["text"]), verbose=False)["input_ids"]
      questions.append(Question(Prompt([*text[:room], *behind]), [choice], [1]))
  found = choice_likelihoods(method, {}, lm.frozen({}), lm, questions, batch_size)
  scores = iter(float(one[0]) for one in found)
  for row in rows:
    scored = [one | {"score": next(scores)} for one in row["ctxs"][:depth]]
    scored.sort(key=lambda one: -one["score"])
    kept = {key: value for key, value in row.items() if key not in ("orders", "scores")}
    yield kept | {"ctxs": scored}
