"""The command in a process of its own, interrupted once at a place.

It is what `python -m frozen_jax.main` does, but at the place the process sends itself a signal or
fills its disk. A place is the opening of a file, seen by an audit hook of Python, or the call of a
function, or the compiler's turn at a program: the package itself knows nothing of it.

Processes are forks of a server that has imported everything and has touched no device, which saves
them half of their time.
"""

import contextlib
import fnmatch
import functools
import importlib
import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

FILLER = "filler"  # the file that fills the disk
PRELOADED = (
  *("benchmarks.interrupted", "frozen_jax.run.train", "frozen_jax.run.results.report"),
  *("transformers.models.auto.tokenization_auto", "matplotlib.backends.backend_agg"),
)


class Opened(NamedTuple):
  """A file is opened whose path ends in this pattern."""

  pattern: str

  def watch(self, act: Callable[[], None]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
      if event == "open" and fnmatch.fnmatch(str(arguments[0]), f"*/{self.pattern}"):
        act()

    sys.addaudithook(hook)


class Called(NamedTuple):
  """A function, `module:name`, is called for the `number`-th time."""

  function: str
  number: int

  def watch(self, act: Callable[[], None]) -> None:
    owner, _, name = self.function.partition(":")
    module = importlib.import_module(owner)
    real, calls = getattr(module, name), 0

    @functools.wraps(real)
    def call(*arguments: Any, **named: Any) -> Any:
      nonlocal calls
      calls += 1
      if calls == self.number:
        act()
      return real(*arguments, **named)

    setattr(module, name, call)


class Compiled(NamedTuple):
  """A function has been traced and lowered, and is given to the compiler."""

  name: str

  def watch(self, act: Callable[[], None]) -> None:
    from jax import monitoring

    def listen(event: str, seconds: float, **about: Any) -> None:
      names = (self.name, f"jit({self.name})")
      if "jaxpr_to_mlir_module" in event and about.get("fun_name") in names:
        act()

    monitoring.register_event_duration_secs_listener(listen)


# In the order in which the run of `benchmarks.interruptions` comes to them: two stages of five
# steps, validated before the first and after the second, fourth and fifth, saved after these.
# Before them the LM without training answers, after them the model of each.
PLACES: dict[str, Opened | Called | Compiled] = {
  "reading data": Opened("train.jsonl"),
  "reading config.json": Opened("model/config.json"),
  "reading weights": Opened("model/model.safetensors"),
  "reading the tokenizer": Opened("model/tokenizer_config.json"),
  "answering without training": Called("frozen_jax.evaluation.scores:_score_questions", 1),
  "compiling the first step": Compiled("step"),
  "between two stages": Called("frozen_jax.run.train:run_stage", 2),
  "in step 3": Called("frozen_jax.training.loop:global_batch", 8),
  "in the validation of step 4": Called("frozen_jax.run.stage:shard_batch", 7),
  "writing the checkpoint of step 4": Opened("baseline/00000004.*/orbax.checkpoint"),
  "answering test questions": Called("frozen_jax.evaluation.scores:_score_questions", 3),
  "drawing report.png": Called("frozen_jax.evaluation.plots:report_figure", 1),
  "writing results.json": Opened(".results.json.*"),
}
SIGNALS = {name: getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGKILL")}
FULL = "disk full"
EVENTS = (*SIGNALS, FULL)


def fill(folder: pathlib.Path) -> None:
  """Writes a file until the disk of the folder takes no more."""
  with contextlib.suppress(OSError), open(folder / FILLER, "wb", buffering=0) as file:
    while True:
      file.write(bytes(2**20))


def once(event: str, disk: pathlib.Path) -> Callable[[], None]:
  """What happens at the place, the first time that a process comes to it."""
  left = [event]

  def act() -> None:
    if not left:
      return
    left.clear()
    fill(disk) if event == FULL else os.kill(os.getpid(), SIGNALS[event])

  return act


def run(
  arguments: Sequence[str],
  disk: pathlib.Path,
  log: pathlib.Path,
  compiled: pathlib.Path,
  at: tuple[str, str] | None,
) -> int:
  """The command with these arguments -> its exit status; minus the signal that ended it.

  disk: of what it fills. log: takes all that it prints. compiled: where programs are kept. at: the
  place and the event, None for neither.
  """
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(PRELOADED))
  process = context.Process(target=_main, args=(arguments, disk, log, compiled, at))
  process.start()
  process.join()
  assert process.exitcode is not None
  return process.exitcode


def _main(
  arguments: Sequence[str],
  disk: pathlib.Path,
  log: pathlib.Path,
  compiled: pathlib.Path,
  at: tuple[str, str] | None,
) -> None:
  import jax

  with open(log, "wb") as file:
    for stream in (1, 2):
      os.dup2(file.fileno(), stream)
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  if at is not None:
    place, event = at
    PLACES[place].watch(once(event, disk))
  sys.argv = ["frozen_jax.main", *arguments]
  runpy.run_module("frozen_jax.main", run_name="__main__", alter_sys=True)
