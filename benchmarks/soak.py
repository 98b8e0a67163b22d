"""The decoding engine for ten minutes: `python -m benchmarks.soak`.

Prompts of 8 to 128 random tokens are continued by SmolLM2-135M in float32, 100 of them at a call,
at temperature 1, up to 32 tokens each, until both 5,000 prompts and 10 minutes are over. After
each call the resident set of the process is read, and what XLA was asked to compile is counted
(programs that come from a compilation cache on disk included). Printed is a table of the run by
tenths, then the slope of a straight line through the memory after the warm-up, the first
`--warm-up` prompts. Ends with status 1 where that line grows by more than `--growth` of the memory
that it begins with, or where anything was compiled after the warm-up. `--json=FILE` also writes
the figures. Linux only.
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.decoding_side import prompts
from benchmarks.training_step import machine
from benchmarks.work import MODEL
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
from frozen_jax.core.types import Prompt
from frozen_jax.core.user_path import user_path
from frozen_jax.decoding.requests import Sampling
from frozen_jax.models.frozen_lm import FrozenLM, load_frozen
from frozen_jax.models.generation import complete

COMPILING = "/jax/core/compile/backend_compile_duration"


class Look(NamedTuple):
  """How things stand after a call; all but the memory since the start."""

  seconds: float
  prompts: int
  tokens: int
  resident: int  # bytes
  compiled: int  # programs


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default=MODEL, help="the model, by any name that can be loaded")
  parser.add_argument("--dtype", default="float32", help="of its weights")
  parser.add_argument("--prompts", type=int, default=5000, help="at least so many")
  parser.add_argument("--minutes", type=float, default=10.0, help="at least so long")
  parser.add_argument("--call", type=int, default=100, help="prompts of a call")
  parser.add_argument("--new", type=int, default=32, help="tokens of a continuation at most")
  parser.add_argument("--warm-up", type=int, default=1000, help="prompts that are not judged")
  parser.add_argument("--growth", type=float, default=0.02, help="share that memory may grow by")
  parser.add_argument("--json", type=user_path, help="also write the figures to this file")
  options = parser.parse_args(arguments)
  names: list[str] = []
  listen = lambda event, seconds, **about: (
    names.append(str(about.get("fun_name"))) if event == COMPILING else None
  )
  jax.monitoring.register_event_duration_secs_listener(listen)
  looks = run(load_frozen(options.model, options.dtype), options, lambda: len(names))
  figures = judged(looks, options.warm_up)
  show(looks, figures)
  late = names[len(names) - figures["compiled"] :]
  if options.json:
    row = {"work": "soak", "compiled_names": late, **figures}
    options.json.write_text(json.dumps({"machine": machine(), "rows": [row]}, indent=2) + "\n")
  if late:
    raise SystemExit(f"{len(late)} programs were compiled after the warm-up: {', '.join(late)}")
  if figures["growth"] > options.growth:
    raise SystemExit(f"memory grew by {figures['growth']:.1%}, more than {options.growth:.1%}")


def run(lm: FrozenLM, options: argparse.Namespace, compiled: Callable[[], int]) -> list[Look]:
  """Call after call; `compiled` says how many programs there are so far."""
  zero_shot, sampling = lm.zero_shot(), Sampling(options.new, temperature=1.0)
  looks, start, done, tokens = [], time.monotonic(), 0, 0
  while done < options.prompts or time.monotonic() - start < 60 * options.minutes:
    asked = [Prompt(ids) for ids in prompts(options.call, lm.config.vocab_size, seed=done)]
    completions = complete(zero_shot, asked, sampling)
    done += len(completions)
    tokens += sum(len(one.ids) for (one,) in completions)
    looks.append(Look(time.monotonic() - start, done, tokens, resident(), compiled()))
  return looks


def resident() -> int:
  """Bytes of this process that lie in memory."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def judged(looks: Sequence[Look], warm_up: int) -> dict[str, Any]:
  """The figures after the warm-up; `growth` is the line's, as a share of where it begins.

  Ends the program where fewer than three calls come after the warm-up.
  """
  warm = [look for look in looks if look.prompts <= warm_up]
  after = looks[len(warm) :]
  if len(after) < 3:
    raise SystemExit(f"{len(after)} calls come after the warm-up; give more prompts or minutes")
  seconds = np.array([look.seconds for look in after])
  slope, begin = np.polyfit(seconds - seconds[0], [look.resident for look in after], 1)
  last = looks[-1]
  return {
    "prompts": last.prompts,
    "seconds": last.seconds,
    "tokens_per_second": last.tokens / last.seconds,
    "resident_mb": begin / 1e6,
    "slope_mb_per_minute": slope * 60 / 1e6,
    "growth": slope * (seconds[-1] - seconds[0]) / begin,
    "compiled": last.compiled - (warm[-1].compiled if warm else 0),
    "compiled_before": warm[-1].compiled if warm else 0,
  }


def show(looks: Sequence[Look], figures: dict[str, Any]) -> None:
  """The table."""
  print(f"{'minutes':>8} {'prompts':>8} {'tokens/s':>9} {'resident MB':>12} {'compiled':>9}")
  before = Look(0.0, 0, 0, 0, 0)
  for index in sorted({-(-len(looks) * tenth // 10) - 1 for tenth in range(1, 11)}):
    look = looks[index]
    rate = (look.tokens - before.tokens) / (look.seconds - before.seconds)
    print(
      f"{look.seconds / 60:8.2f} {look.prompts:8} {rate:9.1f} {look.resident / 1e6:12.1f} "
      f"{look.compiled - before.compiled:9}"
    )
    before = look
  print(
    f"after the warm-up: {figures['slope_mb_per_minute']:+.2f} MB a minute, "
    f"{figures['growth']:+.2%} of {figures['resident_mb']:.1f} MB in all; "
    f"{figures['compiled']} programs compiled",
    flush=True,
  )


if __name__ == "__main__":
  keep_freed_memory()  # as the command does
  wait_for_each_program()
  main()
