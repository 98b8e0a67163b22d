"""What one row of a table gains over another, question by question. Imports no jax.

A gain is a difference in exact match (percentage points) and one in loss (nats per target), each
with its 95% interval over questions (`evaluation.intervals`).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.intervals import means_with_intervals, values_per_unit

EXACT_MATCH, LOSS = "exact_match", "loss"

_STATED = re.compile(r"(?:([^:]+): *)?(\S+) over (\S+)")
_ROWS_WITHOUT_STAGE = ("zero_shot", "zero_shot_chat")


class Gain(NamedTuple):
  """A difference between two rows of the table that a run states: `row` over `against`.

  what: what the first has and the second has not, in words.
  """

  what: str
  row: str
  against: str


class QuestionScores(NamedTuple):
  """What a row has of a question: exact match in percent, its targets' sum of losses in nats.

  loss: None where it is not known. targets: how many there are.
  """

  exact_match: float
  loss: float | None = None
  targets: int = 0


def stated_gains(given: Sequence[Any], stages: Collection[str]) -> tuple[Gain, ...]:
  """`config.gains` as rows; UserError for another form, and for rows that there cannot be.

  stages: those of the config, run or not.
  """
  known = [*stages, *_ROWS_WITHOUT_STAGE]
  gains = []
  for one in given:
    found = _STATED.fullmatch(str(one))
    if not found:
      raise UserError(f"config.gains holds {one!r}; write 'WHAT: ROW over ROW', or 'ROW over ROW'")
    what, row, against = found.groups()
    for name in (row, against):
      if name not in known:
        raise UserError(
          f"config.gains holds {one!r}, but there is no row {name}; there are {', '.join(known)}"
        )
    gains.append(Gain(what or row, row, against))
  return tuple(gains)


def question_gains(
  row: Sequence[QuestionScores], against: Sequence[QuestionScores]
) -> dict[str, Float[np.ndarray, " N"]]:
  """{EXACT_MATCH, LOSS?: values of questions whose mean is the difference of the rows' figures}.

  Both are of the same questions. The loss is that of those which have one in both rows, and none
  where the targets differ: then the tokens are others.
  """
  found = {EXACT_MATCH: np.array([b.exact_match - a.exact_match for b, a in _pairs(row, against)])}
  both = [(b, a) for b, a in _pairs(row, against) if b.loss is not None and a.loss is not None]
  if both and all(b.targets == a.targets > 0 for b, a in both):
    sums = np.array([[b.loss, a.loss] for b, a in both], np.float64)
    units = np.array([b.targets for b, _ in both], np.float64)
    found[LOSS] = values_per_unit(sums[:, 0] - sums[:, 1], units)
  return found


def gain_intervals(values: Mapping[str, Float[np.ndarray, " N"]]) -> dict[str, dict[str, float]]:
  """{name: {"difference", "difference_low", "difference_high"}} of `question_gains`."""
  return {
    name: means_with_intervals([{"difference": one} for one in own.tolist()])
    for name, own in values.items()
  }


def _pairs(
  row: Sequence[QuestionScores], against: Sequence[QuestionScores]
) -> list[tuple[QuestionScores, QuestionScores]]:
  return list(zip(row, against, strict=True))
