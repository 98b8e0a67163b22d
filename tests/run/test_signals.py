"""A run that is asked to stop, at any time: it ends well, and goes on from the right step."""

import contextlib
import gc
import importlib
import itertools
import json
import os
import pathlib
import pkgutil
import re
import shutil
import signal
import time

import pytest

from frozen_jax.core import interruption
from frozen_jax.core.errors import Interrupted
from frozen_jax.run import train
from frozen_jax.run.results.records import table_rows
from frozen_jax.training.metrics import read_metrics
from tests.run.settings_cases import with_value

STEPS = 3
TRAIN = importlib.import_module("frozen_jax.run.train")  # `frozen_jax.run.train` is the function


def passed_on(function, number):
  """Sends a signal before the call."""

  def call(*arguments, **named):
    os.kill(os.getpid(), number)
    return function(*arguments, **named)

  return call


def made_an_error(function, number):
  """As code does that takes whatever is raised for a failure of its own."""

  def call(*arguments, **named):
    try:
      os.kill(os.getpid(), number)
    except BaseException as error:
      raise RuntimeError("damaged file") from error

  return call


def lost(function, number):
  """As a destructor does, in which what is raised is lost."""

  def call(*arguments, **named):
    with contextlib.suppress(BaseException):
      os.kill(os.getpid(), number)
    return function(*arguments, **named)

  return call


READERS = [
  ("orbax.checkpoint.v1", "load_checkpointables"),
  ("orbax.checkpoint.v1", "checkpointables_metadata"),
  ("transformers.PreTrainedTokenizerFast", "from_pretrained"),
  ("safetensors", "safe_open"),
  ("frozen_jax.run.early_checks", "open_task"),
  (TRAIN, "load_model"),
  (TRAIN, "score_models"),
  ("frozen_jax.run.results.records", "draw_report"),
]


@pytest.mark.parametrize("how", [passed_on, made_an_error])
@pytest.mark.parametrize("owner, name", READERS, ids=[name for _, name in READERS])
def test_a_signal_while_something_is_read_is_no_error_of_it(
  trained_stage, tmp_path, monkeypatch, owner, name, how
):
  config, workdir = trained_stage
  workdir = shutil.copytree(workdir, tmp_path / "run")
  number = signal.SIGINT if how is passed_on else signal.SIGTERM
  where = pkgutil.resolve_name(owner) if isinstance(owner, str) else owner
  before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  monkeypatch.setattr(where, name, how(getattr(where, name), number))
  with pytest.raises(Interrupted, match=f"interrupted at step {STEPS}"):
    train(config, workdir)
  assert {number: signal.getsignal(number) for number in before} == before
  assert not (workdir / "results.json").exists()
  assert list((workdir / "checkpoints" / "prompt").iterdir()), "the checkpoint stays"


def test_a_signal_in_the_hub_client_is_no_failure_of_the_hub(trained_stage, tmp_path, monkeypatch):
  import huggingface_hub

  def signalled(*arguments, **named):
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", signalled)
  with pytest.raises(Interrupted, match="interrupted at step 0"):
    train(with_value(trained_stage[0], "model.name", "hf:owner/name"), tmp_path)


def test_a_signal_whose_exception_is_lost_stops_the_run_at_the_next_step(
  trained_stage, tmp_path, monkeypatch
):
  monkeypatch.setattr(TRAIN, "load_model", lost(TRAIN.load_model, signal.SIGTERM))
  with pytest.raises(Interrupted):
    train(trained_stage[0], tmp_path)
  assert len(read_metrics(tmp_path)) <= 1


def test_a_signal_in_a_callback_of_the_garbage_collector(
  trained_stage, tmp_path, monkeypatch, capsys
):
  def callback(*_):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.SIGTERM)

  def load(*_):
    gc.callbacks.append(callback)
    gc.collect()
    for _ in range(1000):
      time.sleep(0.01)
    pytest.fail("what was raised is lost")

  monkeypatch.setattr(TRAIN, "load_model", load)
  with pytest.raises(Interrupted):
    train(trained_stage[0], tmp_path)
  assert "Traceback" not in capsys.readouterr().err


def test_the_step_is_that_of_the_newest_checkpoint(tmp_path):
  from frozen_jax.training.checkpoint_folders import saved_step

  assert saved_step(tmp_path) == 0
  for age, name in ((30, "a/00000080"), (20, "b/00000005"), (10, "b/00000005-1"), (1, "c/x.tmp")):
    folder = tmp_path / "checkpoints" / name
    folder.mkdir(parents=True)
    os.utime(folder, (time.time() - age,) * 2)
  assert saved_step(tmp_path) == 5


def starts(process):
  """Waits until our code runs: the interpreter itself handles no SIGTERM."""
  status = pathlib.Path(f"/proc/{process.pid}/status")
  caught = lambda: int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
  while not caught() >> (signal.SIGTERM - 1) & 1:
    time.sleep(0.005)


@pytest.mark.stress
def test_at_any_time_of_its_life(program, prompt_run, tmp_path):
  """Signalled a little later each time, twice: exit 0, no traceback, the same run in the end.

  The signals take turns.
  """
  at, complete, numbers = 0.0, False, itertools.cycle(interruption.SIGNALS)
  while not complete and at < 30:
    process = program.train("prompt_tuning.py:smoke", tmp_path, anew=True)
    starts(process)
    number = next(numbers)
    try:
      process.wait(at)
    except Exception:
      process.send_signal(number)
      time.sleep(0.05)
      process.send_signal(number)
    _, err = program.finish(process)
    assert "Traceback" not in err and "error:" not in err, err
    complete = (tmp_path / "results.json").exists()
    assert complete or re.search(r"interrupted at step \d+", err), err
    at = 2 * at + 0.4
  if not complete:
    program.finish(program.train("prompt_tuning.py:smoke", tmp_path))
  figures = ("stage", "step", "split", "loss", "accuracy")
  ours, theirs = (
    [{name: entry.get(name) for name in figures} for entry in read_metrics(folder)]
    for folder in (tmp_path, prompt_run.workdir)
  )
  assert ours == theirs
  own, other = (
    table_rows(json.loads((folder / "results.json").read_text()))
    for folder in (tmp_path, prompt_run.workdir)
  )
  scores = lambda rows: {
    name: {key: value for key, value in row.items() if key != "tokens_per_second"}
    for name, row in rows.items()
  }
  assert scores(own) == scores(other)
