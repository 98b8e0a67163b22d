"""What textual recursion is compared with on its own samples: majority, likelihood, a bound."""

from collections.abc import Callable, Mapping, Sequence

from frozen_jax.evaluation.candidates import Candidate, likeliest, majority, merged, oracle
from frozen_jax.run.answering import Rows
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.scores import Scores, score_all, score_answers
from frozen_jax.run.stages import System, question_task

Pick = Callable[[Sequence[Candidate], Sequence[str]], str]


def compared(
  rows: Rows,
  before: Mapping[str, Scores],
  last: Mapping[str, System],
  lm: FrozenLM,
) -> dict[str, Scores]:
  """The table's rows `before`, those that choose among the samples, and the `last` system's.

  rows: the test questions with their samples. last: pass two, alone, by its name in the table.
  `majority` is the answer sampled most often, `likeliest` the one with the best likelihood,
  `oracle` an accepted one if any was sampled: what there is to gain.
  """
  picks: dict[str, Pick] = {
    "majority": lambda found, _: majority(found),
    "likeliest": lambda found, _: likeliest(found),
    "oracle": oracle,
  }
  (system,) = last.values()
  task = question_task(system.options, lm, system.method)
  found = [merged([tuple(one) for one in row["samples"]]) for row in rows]
  accepted = [task.answers(row) for row in rows]
  chosen = {name: list(map(pick, found, accepted)) for name, pick in picks.items()}
  scored = {name: score_answers(task, rows, texts) for name, texts in chosen.items()}
  return {**before, **scored, **score_all(last, lm)}
