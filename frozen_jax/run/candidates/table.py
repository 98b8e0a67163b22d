"""What textual recursion is compared with on its own samples: majority, likelihood, a bound."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.candidates import Candidate, likeliest, majority, merged, oracle
from frozen_jax.evaluation.intervals import with_intervals
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.scores import Scores, score_all
from frozen_jax.run.stages import System

Pick = Callable[[Sequence[Candidate], Sequence[str]], str]


def compared(
  rows: Sequence[Mapping[str, Any]],
  before: Mapping[str, Scores],
  last: Mapping[str, System],
  lm: FrozenLM,
) -> dict[str, Scores]:
  """The table's rows `before`, those that choose among the samples, and the `last` system's.

  rows: the test questions with their samples.
  `majority` is the answer sampled most often, `likeliest` the one with the best likelihood,
  `oracle` an accepted one if any was sampled: what there is to gain.
  """
  picks: dict[str, Pick] = {
    "majority": lambda found, _: majority(found),
    "likeliest": lambda found, _: likeliest(found),
    "oracle": oracle,
  }
  chosen = {name: _scores(rows, pick) for name, pick in picks.items()}
  return {**before, **chosen, **score_all(last, lm)}


def _scores(rows: Sequence[Mapping[str, Any]], pick: Pick) -> Scores:
  graded, predictions = [], []
  for row in rows:
    accepted = row.get("answers") or [row["target"]]
    prediction = pick(merged([tuple(one) for one in row["samples"]]), accepted)
    graded.append(grade([prediction], [accepted]))
    asked = row.get("question") or row["input"]
    predictions.append(
      {"id": row["id"], "input": asked, "prediction": prediction, "answers": accepted}
    )
  return Scores(with_intervals(graded) | {"examples": len(rows)}, predictions=predictions)
