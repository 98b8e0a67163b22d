"""What textual recursion is compared with on its own samples: majority, likelihood, a bound."""

from collections.abc import Callable, Sequence
from typing import Any

from frozen_jax.evaluation.candidates import (
  Candidate,
  majority_vote,
  merge_samples,
  most_likely,
  oracle,
)
from frozen_jax.evaluation.scores import Scores, score_answers
from frozen_jax.models.tuned_model import TunedModel

Pick = Callable[[Sequence[Candidate], Sequence[str]], str]

_PICKS: dict[str, Pick] = {
  "majority": lambda candidates, _: majority_vote(candidates),
  "likeliest": lambda candidates, _: most_likely(candidates),
  "oracle": oracle,
}


def picked_scores(model: TunedModel, rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
  """The rows of the table that choose among the samples of each question.

  `majority` is the answer sampled most often, `likeliest` the one with the best likelihood,
  `oracle` an accepted one if any was sampled: what there is to gain.
  """
  task = model.question_task
  candidates = [merge_samples([tuple(one) for one in row["samples"]]) for row in rows]
  accepted = [task.answers(row) for row in rows]
  return {
    name: score_answers(task, list(rows), list(map(pick, candidates, accepted)))
    for name, pick in _PICKS.items()
  }
