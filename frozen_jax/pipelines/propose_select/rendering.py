"""Questions with the answers that were proposed to them, as texts for pass two.

A row of `sampling.py` becomes `{"id", "input", "target", "answers", "candidates", ...}`. A training
question is shown several times, its candidates in another order each time, so that pass two does
not learn positions; otherwise the most frequent stands first.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from frozen_jax.core.json_row import Row
from frozen_jax.core.seeds import seed32
from frozen_jax.evaluation.candidates import Candidate, merge_samples
from frozen_jax.pipelines.propose_select.settings import CandidateRendering, CandidateSettings
from frozen_jax.text.answers import exact_match


def is_training_row(row: Row, settings: CandidateSettings) -> bool:
  """Whether pass two learns from this sampled row: any, or one with a right candidate shown."""
  if settings.learn_from == "all":
    return True
  answers = _accepted_answers(row)
  return any(exact_match(one.text, answers) for one in shown_candidates(row, settings))


def render(
  row: Row, settings: CandidateRendering, permutations: int = 0, seed: int = 0
) -> Iterator[Row]:
  """The texts of one sampled row: one, or so many `permutations` of its candidates.

  In training (`permutations` above 0) the target is an accepted answer as it is spelt among the
  candidates, if one is there, else the first accepted one.
  """
  template, answers = settings.template, _accepted_answers(row)
  shown = shown_candidates(row, settings)
  question = row.get("original_question") or row.get("question") or row["input"]
  carried: Row = {key: row[key] for key in ("passages", "tokens") if key in row}
  random = np.random.default_rng([zlib.crc32(str(row["id"]).encode()), seed32(seed)])
  for number in range(max(permutations, 1)):
    positions = random.permutation(len(shown)) if permutations else range(len(shown))
    candidates = [shown[position] for position in positions]
    texts = [_fill(template.candidate, one, len(row["samples"])) for one in candidates]
    text = template.prompt.format(question=question, candidates=template.separator.join(texts))
    rendered: Row = {"id": f"{row['id']}/{number}" if permutations else row["id"]}
    rendered |= {"original_question": question, "input": text, **carried}
    if answers:
      proposed = (one.text for one in shown if permutations and exact_match(one.text, answers))
      target = next(proposed, answers[0])
      rendered |= {"target": target, "answers": list(dict.fromkeys([target, *answers]))}
    yield rendered | {"candidates": [[one.text, one.count, one.log_prob] for one in candidates]}


def shown_candidates(row: Row, settings: CandidateRendering) -> list[Candidate]:
  """The candidates that are shown, the most frequent first."""
  return merge_samples([tuple(one) for one in row["samples"]])[: settings.max_candidates]


def _accepted_answers(row: Row) -> list[str]:
  return list(row.get("answers") or ([row["target"]] if "target" in row else []))


def _fill(template: str, candidate: Candidate, samples: int) -> str:
  return template.format(
    text=candidate.text,
    count=candidate.count,
    share=round(100 * candidate.count / samples),
    likelihood=round(100 * float(np.exp(candidate.log_prob))),
  )
