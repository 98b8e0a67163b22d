"""What a reader's job is scored by: the reader on every order and budget, and what was found."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from frozen_jax.data.json_lines import JsonLines
from frozen_jax.evaluation.retrieval_recall import answer_recall, gold_recall
from frozen_jax.methods import METHODS
from frozen_jax.run import options as experiment
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.reader import pack
from frozen_jax.run.reader.job import Job
from frozen_jax.run.scores import Scores, answered, score, score_all
from frozen_jax.run.stages import System
from frozen_jax.text.answers import contains, normalise

Figures = dict[str, float]


def compared(job: Job, systems: Mapping[str, System], lm: FrozenLM) -> dict[str, Scores]:
  """Scores the LM as it comes, the last stage on every pack, and each stage on its own test data.

  Returns {row of the table: its scores}, the last system's last. A pack that no stage reads has
  exact match and F1 alone. Beside these a row has `gold_read` and `answer_read`, percent of
  questions whose passages in the prompt are among those that answer, or hold an accepted answer;
  `tokens_read` and `passages_read`, means.
  """
  *_, last = systems.values()
  as_it_comes = System(METHODS["zero_shot"](lm, {}), {}, {}, last.options)
  packs = {}
  for order, budget in job.compared():
    data = last.options["data"] | {"test": str(job.test_pack(order, budget))}
    packs[f"{order} {budget}"] = dataclasses.replace(last, options=last.options | {"data": data})
  rows = {"zero_shot": as_it_comes, **systems, **packs}
  # Rows may read the same: no passages at all under each budget, or the pack of a stage.
  first: dict[tuple[int, str], str] = {}
  same = {name: first.setdefault((id(s.trained), _pack(job, s)), name) for name, s in rows.items()}
  scores: dict[str, Scores] = {}
  for by, of in ((answered, packs), (score, rows.keys() - packs.keys())):
    scores |= score_all({name: rows[name] for name in first.values() if name in of}, lm, by)
  for name, found in scores.items():
    read = _what_is_read(job, rows[name].options["data"]["test"])
    scores[name] = dataclasses.replace(found, figures=found.figures | read)
  return {name: scores[same[name]] for name in ("zero_shot", *packs, *systems)}


def retrieval(job: Job, options: experiment.Options, lm: FrozenLM) -> dict[str, Figures]:
  """{order: figures} of the test questions: recall of gold passage and answer at `reader.ranks`.

  Of the orders that were made so far, each at the ranks that it reaches. `tokens_retrieved`: the
  mean of the LM's tokens in all fused passages of a question.
  """
  reader = options["reader"]
  found: dict[str, Figures] = {}
  text_of = functools.cache(lambda at: job.corpus[at].joined())
  for order in filter(job.made, [*reader["retrievers"], "fused", "lm", "re_ranked", "blended"]):
    ids, gold, answers = [], [], []
    for row in job.rows(order):
      passages, _ = pack.ordered(row, order, job.corpus)
      ids.append([job.corpus.position(one["id"]) for one in passages])
      gold.append([job.corpus.position(id) for id in row["positive_ids"]])
      answers.append(row["answers"])
    ranks = [rank for rank in reader["ranks"] if rank <= len(ids[0])]
    found[order] = answer_recall(np.array(ids), answers, text_of, ranks)
    if any(gold):
      found[order] |= gold_recall(np.array(ids), gold, ranks)
  sizes = functools.cache(
    lambda text: len(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
  )
  totals = [sum(sizes(one["text"]) for one in row["ctxs"]) for row in job.rows("fused")]
  found["fused"]["tokens_retrieved"] = float(np.mean(totals))
  return found


def lines(found: Mapping[str, Figures]) -> list[str]:
  """The recall table as text."""
  names = list(dict.fromkeys(name for figures in found.values() for name in figures))
  names = [name for name in names if "recall" in name]
  if not found:
    return []
  made = ["percent of test questions: " + ", ".join(names)]
  for order, figures in found.items():
    cells = (f"{figures[name]:8.1f}" if name in figures else f"{'-':>8}" for name in names)
    made.append(f"{order:<12}{''.join(cells)}")
  return made


def _pack(job: Job, system: System) -> str:
  """The digest of the packed questions that a system is scored on."""
  return job.steps.digests[pathlib.Path(system.options["data"]["test"]).name]


def _what_is_read(job: Job, name: str) -> Figures:
  """What stands in the prompts of a packed file of test questions."""
  gold_hits, answer_hits, tokens, counts, with_gold = [], [], [], [], False
  for row, of in zip(_lines(name), job.rows("fused"), strict=True):
    ids = [one["id"] for one in row["passages"]]
    texts = [job.corpus[job.corpus.position(id)].joined() for id in ids]
    wanted = [normalise(answer) for answer in row["answers"]]
    with_gold = with_gold or bool(of["positive_ids"])
    gold_hits.append(bool(set(ids) & set(of["positive_ids"])))
    answer_hits.append(any(contains(normalise(text), wanted) for text in texts))
    tokens.append(row["tokens"])
    counts.append(len(ids))
  figures = {
    "answer_read": 100.0 * float(np.mean(answer_hits)),
    "tokens_read": float(np.mean(tokens)),
    "passages_read": float(np.mean(counts)),
  }
  return figures | ({"gold_read": 100.0 * float(np.mean(gold_hits))} if with_gold else {})


def _lines(name: str) -> Iterator[Mapping[str, Any]]:
  rows = JsonLines(name)
  return (rows[number] for number in range(len(rows)))
