"""Questions with the answers that were proposed to them, as texts for pass two.

A row of `sampling.py` becomes `{"id", "input", "target", "answers", "candidates", ...}`. A training
question is shown several times, its candidates in another order each time, so that pass two does
not learn places; otherwise they stand best first.
"""

import string
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.candidates import Candidate, merged
from frozen_jax.text.answers import exact_match

_FIELDS = {
  "prompt": {"question", "candidates"},
  "candidate": {"text", "count", "share", "likelihood"},
  "separator": set(),
}

LEARN_FROM = ("all", "right")

# What of `candidates` the texts depend on.
OPTIONS = ("most", "template")

Row = dict[str, Any]


def check(options: Mapping[str, Any]) -> None:
  """UserError for a template that is malformed or leaves out what it must hold, and for questions
  to learn from that are none; `options`: the config's `candidates`."""
  if options["learn_from"] not in LEARN_FROM:
    raise UserError(
      f"candidates.learn_from is {options['learn_from']!r}; it is one of {', '.join(LEARN_FROM)}"
    )
  template = options["template"]
  for name, allowed in _FIELDS.items():
    try:
      parts = string.Formatter().parse(template[name])
      found = {field for _, field, _, _ in parts if field is not None}
    except ValueError as error:
      raise UserError(
        f"candidates.template.{name} is malformed ({error}); double those braces that are text"
      ) from error
    if found - allowed:
      raise UserError(
        f"candidates.template.{name} has {', '.join(sorted(found - allowed))}; it may hold"
        f" {', '.join(sorted(allowed)) or 'no fields'}"
      )
    missing = (allowed if name == "prompt" else allowed & {"text"}) - found
    if missing:
      raise UserError(f"candidates.template.{name} lacks {{{missing.pop()}}}; add it")


def teaches(row: Row, options: Mapping[str, Any]) -> bool:
  """Whether pass two learns from this sampled row: any, or one that is shown a right candidate."""
  if options["learn_from"] == "all":
    return True
  return any(exact_match(one.text, _accepted(row)) for one in _best(row, options))


def shown(row: Row, options: Mapping[str, Any], orders: int = 0, seed: int = 0) -> Iterator[Row]:
  """The texts of one sampled row: one, best first, or so many `orders` of its candidates.

  options: the config's `candidates`. In training (`orders` above 0) the target is an accepted
  answer as it stands among the candidates, if one does, else the first accepted one.
  """
  template, best, answers = options["template"], _best(row, options), _accepted(row)
  question = row.get("asked") or row.get("question") or row["input"]
  carried: Row = {key: row[key] for key in ("passages", "tokens") if key in row}
  draws = np.random.default_rng([zlib.crc32(str(row["id"]).encode()), seed])
  for number in range(max(orders, 1)):
    order = draws.permutation(len(best)) if orders else range(len(best))
    candidates = [best[at] for at in order]
    texts = [_filled(template["candidate"], one, len(row["samples"])) for one in candidates]
    text = template["prompt"].format(
      question=question, candidates=template["separator"].join(texts)
    )
    made: Row = {"id": f"{row['id']}/{number}" if orders else row["id"], "asked": question}
    made |= {"input": text, **carried}
    if answers:
      proposed = (one.text for one in best if orders and exact_match(one.text, answers))
      target = next(proposed, answers[0])
      made |= {"target": target, "answers": list(dict.fromkeys([target, *answers]))}
    yield made | {"candidates": [[one.text, one.count, one.log_prob] for one in candidates]}


def _best(row: Row, options: Mapping[str, Any]) -> list[Candidate]:
  """The candidates that are shown, the most frequent first."""
  return merged([tuple(one) for one in row["samples"]])[: options["most"]]


def _accepted(row: Row) -> list[str]:
  return list(row.get("answers") or ([row["target"]] if "target" in row else []))


def _filled(template: str, candidate: Candidate, samples: int) -> str:
  return template.format(
    text=candidate.text,
    count=candidate.count,
    share=round(100 * candidate.count / samples),
    likelihood=round(100 * float(np.exp(candidate.log_prob))),
  )
