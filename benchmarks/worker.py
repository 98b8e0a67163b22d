"""One side of a comparison: a process of its own that does a step whenever it is told to.

It reads one word a line from standard input (`step`, `matrix`, `end`) and answers each with one
line of JSON on the standard output that it was started with; whatever a library prints goes to
standard error instead.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(
  step: Callable[[], float],
  matrix_seconds: Callable[[int], float],
  peak_bytes: Callable[[], int] | None = None,
  more: Mapping[str, Any] | None = None,
) -> None:
  """Answers until told to end.

  Args:
    step: does one whole training step and returns its loss once the result is there.
    matrix_seconds: how long one product of two square matrices of this width takes.
    peak_bytes: the most memory that was in use; None: that of the process on the host.
    more: what the last answer holds besides.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    word = line.strip()
    if word == "step":
      start = time.perf_counter()
      loss = step()
      answer = {"seconds": time.perf_counter() - start, "loss": loss}
    elif word == "matrix":
      width = 2048 if peak_bytes is None else 8192
      seconds = min(matrix_seconds(width) for _ in range(8))
      answer = {"flops_per_second": 2 * width**3 / seconds}
    else:
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
      answer = {"peak_bytes": peak if peak_bytes is None else peak_bytes(), **(more or {})}
    print(json.dumps(answer), file=answers, flush=True)
    if word == "end":
      return
