"""Whole programs of two processes, of which one ends by an error of its own or is killed."""

import signal
import time

import pytest

from frozen_jax.training.metrics import read_metrics
from tests.processes import HANGS_AFTER, cluster
from tests.run.error_line import only_error

MESH = "--config.mesh.data=2"
CONFIG = "prompt_tuning.py:smoke"


def start_two(program, workdir, own=((), ())):
  """own: further arguments of each process."""
  return [
    program.train(CONFIG, workdir, MESH, *arguments, **variables)
    for variables, arguments in zip(cluster(), own, strict=True)
  ]


def errors(err):
  assert "Traceback" not in err and "*** " not in err, err
  return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_mistake_on_one_host_is_said_there_and_ends_the_other(program, tmp_path, wrong):
  own = [(), ()]
  own[wrong] = ("--config.data.train=nowhere.jsonl",)
  both = start_two(program, tmp_path / "run", own)
  since = time.monotonic()
  said = [process.communicate(timeout=HANGS_AFTER)[1] for process in both]
  assert time.monotonic() - since < 60
  mistake = only_error(both[wrong].returncode, said[wrong].splitlines())
  assert "nowhere.jsonl" in mistake
  assert both[1 - wrong].returncode == 1, said[1 - wrong]
  (line,) = errors(said[1 - wrong])
  assert line.startswith(f"error: process {wrong} (host ") and "has ended by itself: " in line
  assert mistake.removeprefix("error: ") in line


def test_the_same_mistake_on_all_hosts_is_each_ones_own(program, tmp_path):
  wrong = ("--config.data.train=nowhere.jsonl",)
  both = start_two(program, tmp_path / "run", (wrong, wrong))
  for process in both:
    _, err = program.finish(process, status=2)
    assert len(errors(err)) == 1 and "nowhere.jsonl" in errors(err)[0]


def test_a_killed_program_ends_the_other(program, tmp_path):
  killed = 0  # with which the coordination service of JAX ends, too
  both = start_two(program, tmp_path)
  end = time.monotonic() + 240
  while not read_metrics(tmp_path):
    assert all(process.poll() is None for process in both) and time.monotonic() < end
    time.sleep(0.02)
  both[killed].kill()
  since = time.monotonic()
  _, err = program.finish(both[1 - killed], status=1)
  assert time.monotonic() - since < 60
  (line,) = errors(err)
  assert line.startswith(f"error: process {killed} (host ") and " was lost: " in line
  both[killed].communicate()
  assert both[killed].returncode == -signal.SIGKILL
