"""Packing the passages of each question into prompts, in every ranking that is compared.

  none       no passages: closed book           bm25, dense  as that retriever found them
  bm25_1     the best of BM25 alone             fused        as retrieved
  gold       those known to answer: the bound   re_ranked    by the trained re-ranker
  blended    by a weighted sum of the re-ranker's score and the retrievers'
  lm         by the likelihood of the question after the passage under the frozen LM, as zero-shot
             re-ranking of in-context RALM (Ram et al.
             2023)

Training and test prompts are packed by the same code (docs/paper.md, 3). What is written are rows
that the run's stages read: `{"id", "original_question", "input", "target", "answers", "passages",
"tokens"}`.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import Row
from frozen_jax.core.types import Prompt
from frozen_jax.models.choice_scoring import ChoiceQuestion, choice_log_likelihoods
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.pipelines.experiment import subsection
from frozen_jax.pipelines.retrieve_read.settings import ReaderSettings
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.retrieval.packing import Packer, TokenBudget
from frozen_jax.retrieval.settings import PackingSettings

RANKING_BLOCK = 16  # questions, with as many passages as the LM ranks
PACKING_BLOCK = 256


def make_packer(
  lm: FrozenLM,
  settings: ReaderSettings,
  budget: int,
  ranking: str,
  num_virtual_tokens: int,
  max_new_tokens: int,
) -> Packer:
  """The packer of a budget and a ranking."""
  max_passages = {"bm25_1": 1}.get(ranking, settings.max_passages)
  packing = dataclasses.replace(subsection(settings, PackingSettings), max_passages=max_passages)
  tokens = TokenBudget(budget, max_new_tokens, num_virtual_tokens)
  return Packer(lm.tokenizer, packing, tokens)


def ranked(row: Row, ranking: str, corpus: Corpus) -> tuple[Sequence[Row], list[float]]:
  """The passages of a row in a ranking, best first, and their scores (falling ranks where none).

  The row is one of `retrieve.py` for the rankings of retrievers, else one of that ranking itself.
  """
  if ranking == "none":
    return [], []
  if ranking in ("fused", "re_ranked", "blended", "lm"):
    return row["ctxs"], [context["score"] for context in row["ctxs"]]
  if ranking == "gold":
    ids: Sequence[str] = row["positive_ids"]
  else:
    name = ranking.removesuffix("_1")
    if name not in row["rankings"]:
      raise UserError(f"the ranking {ranking} needs {name} among reader.retrievers; add it")
    ids = row["rankings"][name]
  passages = [corpus[corpus.position(id)]._asdict() for id in ids]
  return passages, [float(-rank) for rank in range(len(ids))]


def pack_rows(rows: Iterable[Row], ranking: str, corpus: Corpus, packer: Packer) -> Iterator[Row]:
  """A row for the stages of each row: its prompt with what fits into the budget.

  `passages` are in the order of the prompt, with their scores; `tokens` counts the prompt's.
  """
  for row in rows:
    passages, scores = ranked(row, ranking, corpus)
    texts = [(one["title"], one["text"]) for one in passages]
    packed = packer.pack(row["question"], texts, scores)
    answers = row["answers"]
    read = [
      {"id": passages[index]["id"], "title": passages[index]["title"], "score": scores[index]}
      for index in packed.passages
    ]
    yield {
      "id": row["id"],
      "original_question": row["question"],
      "input": packed.prompt,
      **({"target": answers[0], "answers": answers} if answers else {}),
      "passages": read,
      "tokens": packed.tokens,
      "truncated": packed.truncated,
      "too_long": packed.num_too_long,
    }


def rank_by_likelihood(
  rows: Iterable[Row], lm: FrozenLM, settings: ReaderSettings, batch_size: int
) -> Iterator[Row]:
  """The rows with their first `lm_depth` passages by how likely each makes the question.

  The score is the log-likelihood in nats of the question after the passage. A passage that leaves
  the question no room in the LM's context is cut.
  """
  rows = iter(rows)
  while block := list(itertools.islice(rows, RANKING_BLOCK)):
    yield from _rank_block(block, lm, settings, batch_size)


def _rank_block(
  rows: Sequence[Row], lm: FrozenLM, settings: ReaderSettings, batch_size: int
) -> Iterator[Row]:
  template, depth, tokenizer = settings.template, settings.lm_depth, lm.tokenizer
  questions = []
  for row in rows:
    choice = tokenizer(" " + row["question"], add_special_tokens=False, verbose=False)["input_ids"]
    lead = tokenizer("\n\nQuestion:", add_special_tokens=False, verbose=False)["input_ids"]
    available = lm.config.context - len(choice) - len(lead)
    if available < 1:
      start = row["question"][:60]
      raise UserError(f"the question {start!r} is longer than the context; shorten it")
    for one in row["ctxs"][:depth]:
      text = tokenizer(template.fill_passage(one["title"], one["text"]), verbose=False)["input_ids"]
      questions.append(ChoiceQuestion(Prompt([*text[:available], *lead]), [choice], [1]))
  log_likelihoods = choice_log_likelihoods(lm.zero_shot(), questions, batch_size)
  scores = iter(float(of_choices[0]) for of_choices in log_likelihoods)
  for row in rows:
    scored = [one | {"score": next(scores)} for one in row["ctxs"][:depth]]
    scored.sort(key=lambda one: -one["score"])
    fields = {key: value for key, value in row.items() if key not in ("rankings", "scores")}
    yield fields | {"ctxs": scored}
