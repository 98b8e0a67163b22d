"""A reader's rows of the table: the last model on every ranking and budget; and the recall."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from frozen_jax.core.json_row import Row
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.evaluation.retrieval_recall import answer_recall, gold_recall
from frozen_jax.evaluation.scores import Scores, score_test_answers
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.pipeline import ScoredModel
from frozen_jax.pipelines.retrieve_read import pack
from frozen_jax.pipelines.retrieve_read.settings import ReaderSettings
from frozen_jax.retrieval.corpus import Corpus
from frozen_jax.text.answers import contains, normalise

Figures = dict[str, float]


@runtime_checkable
class Reader(Protocol):
  """What the table needs of the pipeline (`retrieve_read.pipeline.RetrieveRead`)."""

  corpus: Corpus
  artifacts: Artifacts

  @property
  def compared(self) -> list[tuple[str, int]]: ...

  def test_pack(self, ranking: str, budget: int) -> pathlib.Path: ...

  def has(self, ranking: str) -> bool: ...

  def rows(self, ranking: str, split: str = "test") -> Iterator[Row]: ...


def with_packs(
  pipeline: Reader, scores: Mapping[str, Scores], models: Mapping[str, ScoredModel]
) -> dict[str, Scores]:
  """The table with the last model on every pack before the stages.

  A pack that no stage reads has exact match and F1 alone. Next to these a row has `gold_read` and
  `answer_read`, percent of questions whose passages in the prompt are among those that answer, or
  hold an accepted answer; `tokens_read` and `passages_read`, means.
  """
  *_, last = scores
  settings, model = models[last]
  rows: dict[str, Scores] = {}
  seen: dict[str, Scores] = {}  # by the digest of the pack: no passages are the same at any budget
  if own := _packed_digest(pipeline, settings.data.test):
    seen[own] = scores[last]
  for ranking, budget in pipeline.compared:
    data = dataclasses.replace(settings.data, test=str(pipeline.test_pack(ranking, budget)))
    digest = _packed_digest(pipeline, data.test)
    if digest not in seen:
      seen[digest] = score_test_answers(model, data, settings.evaluate, settings.prompt.length)
    rows[f"{ranking} {budget}"] = _with_what_is_read(pipeline, seen[digest], data.test)
  with_prompts = {
    name: _with_what_is_read(pipeline, own, models[name][0].data.test)
    for name, own in scores.items()
  }
  baselines = [name for name in scores if models[name][1].method.name == "zero_shot"]
  first = {name: with_prompts.pop(name) for name in baselines}
  return {**first, **rows, **with_prompts}


def recall(pipeline: Reader, settings: ReaderSettings, lm: Any) -> dict[str, Figures]:
  """{ranking: figures} of the test questions: recall of gold passage and answer.

  Of the rankings that were made so far, each at the ranks of `reader.recall_at` that it reaches.
  `tokens_retrieved`: the mean of the LM's tokens in all fused passages of a question.
  `nothing_found`: for how many questions a retriever found no passage, if there are such.
  """
  found: dict[str, Figures] = {}
  text_of = functools.cache(lambda position: pipeline.corpus[position].joined())
  rankings = [*settings.retrievers, "fused", "lm", "re_ranked", "blended"]
  for ranking in filter(pipeline.has, rankings):
    ids, gold, answers, without = [], [], [], 0
    for row in pipeline.rows(ranking):
      passages, _ = pack.ranked(row, ranking, pipeline.corpus)
      ids.append([pipeline.corpus.position(one["id"]) for one in passages])
      gold.append([pipeline.corpus.position(id) for id in row["positive_ids"]])
      answers.append(row["answers"])
      scores = row.get("scores", {})  # of the retrievers' rows only
      without += ranking in scores and not any(scores[ranking])
    ranks = [rank for rank in settings.recall_at if rank <= len(ids[0])]
    found[ranking] = answer_recall(np.array(ids), answers, text_of, ranks)
    if any(gold):
      found[ranking] |= gold_recall(np.array(ids), gold, ranks)
    if without:
      found[ranking]["nothing_found"] = float(without)
  count = functools.cache(
    lambda text: len(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
  )
  totals = [sum(count(one["text"]) for one in row["ctxs"]) for row in pipeline.rows("fused")]
  found["fused"]["tokens_retrieved"] = float(np.mean(totals))
  return found


def recall_lines(recalls: Mapping[str, Figures]) -> list[str]:
  """The recall table as text: a column for each rank, under the name of what is counted."""
  if not recalls:
    return []
  names = dict.fromkeys(name for figures in recalls.values() for name in figures)
  ranks: dict[str, list[str]] = {}
  for kind, _, rank in (name.rpartition("_") for name in names if "recall" in name):
    ranks.setdefault(kind, []).append(rank)
  widths = {kind: max(8, -(-(len(kind) + 2) // len(of))) for kind, of in ranks.items()}
  heads = (f"{kind:>{widths[kind] * len(of)}}" for kind, of in ranks.items())
  columns = [(kind, rank) for kind, of in ranks.items() for rank in of]
  lines = ["percent of test questions", " " * 12 + "".join(heads)]
  lines.append(" " * 12 + "".join(f"{rank:>{widths[kind]}}" for kind, rank in columns))
  for ranking, figures in recalls.items():
    found = ((widths[kind], figures.get(f"{kind}_{rank}")) for kind, rank in columns)
    cells = (f"{'-' if value is None else f'{value:.1f}':>{width}}" for width, value in found)
    lines.append(f"{ranking:<12}{''.join(cells)}")
  lines += [
    f"{ranking} found nothing for {figures['nothing_found']:.0f} test questions, which take no rank"
    " from it"
    for ranking, figures in recalls.items()
    if "nothing_found" in figures
  ]
  return lines


def _packed_digest(pipeline: Reader, path: str) -> str:
  """The digest of a packed file, "" for other data."""
  return pipeline.artifacts.digests.get(path.rpartition("/")[2], "")


def _with_what_is_read(pipeline: Reader, scores: Scores, path: str) -> Scores:
  """The scores with what stands in the prompts of a packed file of test questions."""
  if not _packed_digest(pipeline, path):
    return scores
  gold_hits, answer_hits, tokens, counts, with_gold = [], [], [], [], False
  for row, retrieved in zip(JsonLines(path), pipeline.rows("fused"), strict=True):
    ids = [one["id"] for one in row["passages"]]
    texts = [pipeline.corpus[pipeline.corpus.position(id)].joined() for id in ids]
    wanted = [normalise(answer) for answer in row["answers"]]
    with_gold = with_gold or bool(retrieved["positive_ids"])
    gold_hits.append(bool(set(ids) & set(retrieved["positive_ids"])))
    answer_hits.append(any(contains(normalise(text), wanted) for text in texts))
    tokens.append(row["tokens"])
    counts.append(len(ids))
  figures = {
    "answer_read": 100.0 * float(np.mean(answer_hits)),
    "tokens_read": float(np.mean(tokens)),
    "passages_read": float(np.mean(counts)),
  }
  if with_gold:
    figures["gold_read"] = 100.0 * float(np.mean(gold_hits))
  return dataclasses.replace(scores, metrics=scores.metrics | figures)
