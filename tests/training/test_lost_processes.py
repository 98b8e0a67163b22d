"""Two processes of one run, of which one is killed or stopped: what the other does and says."""

import pathlib
import signal
import socket
import time

import pytest

from frozen_jax.training.metrics import read_metrics
from tests.processes import HANGS_AFTER, cluster, start

pytestmark = pytest.mark.program

HERE = pathlib.Path(__file__).parent
STEPS = 12
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # as `frozen_jax.main` sets it


def start_two(folder, *arguments):
  return [
    start(HERE / "toy.py", folder, f"steps={STEPS}", "data=2", *arguments, **variables, **QUIET)
    for variables in cluster()
  ]


def wait_for_steps(folder, count, processes):
  end = time.monotonic() + 120
  while sum(entry["split"] == "train" for entry in read_metrics(folder)) < count:
    assert all(process.poll() is None for process in processes), processes[0].communicate()
    assert time.monotonic() < end
    time.sleep(0.02)


def finish(processes):
  said = [process.communicate(timeout=HANGS_AFTER) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  return [out.strip().splitlines()[-1] for out, _ in said]


# The coordinator of a whole program is killed in tests/run/test_several_processes.py.
@pytest.mark.parametrize(
  "killed, pause",
  [(1, "pause=0.3"), (0, "validation_pause=5")],
  ids=["worker", "coordinator in a validation"],
)
def test_a_killed_process_ends_the_other_which_names_it(tmp_path, killed, pause):
  both = start_two(tmp_path, pause, "checkpoint_every=2", "validate_every=4")
  wait_for_steps(tmp_path, 4, both)
  time.sleep(0.5)
  both[killed].kill()
  since = time.monotonic()
  _, err = both[1 - killed].communicate(timeout=60)
  assert time.monotonic() - since < 60
  assert both[1 - killed].returncode == 1, err
  (line,) = [line for line in err.splitlines() if not line.startswith("toy: ")]
  assert line.startswith(f"error: process {killed} (host {socket.gethostname()}) was lost")
  assert "start all 2 processes again" in line and "last checkpoint" in line
  both[killed].communicate()
  said = finish(start_two(tmp_path, "checkpoint_every=2", "validate_every=4"))
  assert said[0] == said[1] and said[0].startswith(f"done {STEPS}")
  steps = [entry["step"] for entry in read_metrics(tmp_path) if entry["split"] == "train"]
  assert steps == list(range(1, STEPS + 1))


# One worker alone is asked in tests/training/test_kill.py.
@pytest.mark.parametrize("asked", [(0,), (0, 1)], ids=["coordinator", "both"])
def test_sigterm_to_some_saves_in_all_at_one_step(tmp_path, asked):
  both = start_two(tmp_path, "pause=0.2")
  wait_for_steps(tmp_path, 3, both)
  for index in asked:
    both[index].send_signal(signal.SIGTERM)
  said = finish(both)
  assert said[0] == said[1] and said[0].startswith("interrupted ")
  step = int(said[0].split()[1])
  assert [path.name for path in (tmp_path / "checkpoints" / "toy").iterdir()] == [f"{step:08d}"]
