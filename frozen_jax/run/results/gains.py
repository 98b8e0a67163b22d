"""The gains that a config states (`config.gains`), of one run: for its record."""

from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core.json_row import Row
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.gains import Gain, QuestionScores, gain_intervals, question_gains

_MOST_KINDS = 20


def gain_records(
  gains: Sequence[Gain], answered: Mapping[str, Sequence[Row]]
) -> list[dict[str, Any]]:
  """{"what", "row", "against", "exact_match", "loss"?, "by_kind"?} of each gain.

  The figures are those of `gain_intervals`, `by_kind` has them by kind of question. answered: the
  predictions of each row. A gain is left out where a row is missing or answered other questions.
  """
  records = []
  for gain in gains:
    row, against = answered.get(gain.row, ()), answered.get(gain.against, ())
    if not row or len(row) != len(against):
      continue
    pairs = list(zip(row, against, strict=True))
    by_kind = {
      kind: _figures([pair for pair in pairs if pair[0].get("kind") == kind])
      for kind in kinds_of(row)
    }
    records.append(gain._asdict() | _figures(pairs) | ({"by_kind": by_kind} if by_kind else {}))
  return records


def kinds_of(rows: Sequence[Row]) -> list[str]:
  """The kinds that questions name, sorted; [] where they are one, or too many for a table."""
  kinds = sorted({kind for row in rows if isinstance(kind := row.get("kind"), str)})
  return kinds if 1 < len(kinds) <= _MOST_KINDS else []


def question_scores(row: Row) -> QuestionScores:
  """The scores of a row of `evaluation.predictions`."""
  exact_match = grade([row["prediction"]], [row["answers"]])["exact_match"]
  if row.get("loss") is None:
    return QuestionScores(exact_match)
  return QuestionScores(exact_match, row["loss"] * row["targets"], row["targets"])


def _figures(pairs: Sequence[tuple[Row, Row]]) -> dict[str, dict[str, float]]:
  row, against = ([question_scores(pair[side]) for pair in pairs] for side in (0, 1))
  return gain_intervals(question_gains(row, against))
