"""A run on a store that goes on on another machine finds there what it has compiled before."""

import pytest

from frozen_jax.core.user_path import user_path
from tests.processes import COMPILED, start
from tests.run.settings_cases import QUESTIONS
from tests.run.task_files import lines_file

# The command of `sys.argv`, which is asked to stop at step LAST of this process.
PREEMPTED = """
import os, signal, sys
from frozen_jax import main
from frozen_jax.core.compilation_cache import enable_compilation_cache
enable_compilation_cache()  # before jax is imported
from frozen_jax.data.batches import TrainingBatches
take, taken = TrainingBatches.__next__, []
def stop(batches):
  taken.append(1)
  if len(taken) == LAST:
    os.kill(os.getpid(), signal.SIGTERM)
  return take(batches)
TrainingBatches.__next__ = stop
sys.exit(main.program())
"""


def last_uses(cache):
  """{program: nanoseconds; 0: it was fetched and not used} of a machine."""
  times = (cache / "compiled").glob("*/*-atime")
  return {
    path.name.removesuffix("-atime"): int.from_bytes(path.read_bytes(), "little") for path in times
  }


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_they_are_used(store, program, tmp_path, monkeypatch):
  monkeypatch.delenv(COMPILED, raising=False)
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  rows = lines_file(tmp_path / "rows.jsonl", *QUESTIONS)
  splits = [f"--config.data.{split}={rows}" for split in ("train", "validation", "test")]
  workdir = f"{store.url}/runs/compiled"
  command = program.command("prompt_tuning.py:smoke", f"--workdir={workdir}", *splits)
  one, two = tmp_path / "one", tmp_path / "two"

  def train(cache, last):
    code = f"LAST = {last}\n{PREEMPTED}"
    process = start("-c", code, *command[2:], anew=True, FROZEN_JAX_CACHE=str(cache))
    return program.finish(process)

  train(one, last=2)
  found = (user_path(workdir) / "compiled").files()
  stored = {path.name.removesuffix("-cache") for path in found}
  assert stored == last_uses(one).keys() and all(last_uses(one).values())
  _, err = train(two, last=1)
  assert "resumes from step 2" in err
  steps = [name for name in stored if name.startswith("jit_step-")]
  assert steps and any(last_uses(two)[name] for name in steps)  # the one with which it goes on
