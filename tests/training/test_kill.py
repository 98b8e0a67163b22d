"""Whole processes: killed and resumed, asked to stop, and two of them as one."""

import pathlib
import random
import signal
import time

import pytest

from frozen_jax.training.metrics import read_metrics
from tests import processes
from tests.processes import HANGS_AFTER, cluster

pytestmark = pytest.mark.stress

HERE = pathlib.Path(__file__).parent
STEPS = 16
WORK = [f"steps={STEPS}", "checkpoint_every=3", "validate_every=5"]
EIGHT = ["data=2", "fsdp=2", "tensor=2"]


def start(folder, *arguments, devices=1, **variables):
  return processes.start(HERE / "toy.py", folder, *WORK, *arguments, devices=devices, **variables)


def finish(process):
  out, err = process.communicate(timeout=HANGS_AFTER)
  assert process.returncode == 0, err[-3000:]
  return out.strip().splitlines()[-1]


def wait_for_lines(folder, count, process):
  """Until so many train lines are written."""
  end = time.monotonic() + 120
  while sum(e["split"] == "train" for e in read_metrics(folder)) < count:
    assert process.poll() is None, process.communicate()[1][-3000:]
    assert time.monotonic() < end
    time.sleep(0.01)


def lines(folder):
  figures = ("stage", "step", "split", "loss", "grad_norm")
  return [{name: e.get(name) for name in figures} for e in read_metrics(folder)]


@pytest.mark.parametrize("devices, mesh", [(1, []), (8, EIGHT)], ids=["one device", "eight"])
def test_killed_at_random_steps_and_resumed_it_is_the_same_run(tmp_path, devices, mesh):
  seed = random.randrange(10**6)
  draw = random.Random(seed)
  said = finish(start(tmp_path / "whole", *mesh, devices=devices))
  for after in sorted(draw.sample(range(1, STEPS), 2)):
    process = start(tmp_path / "killed", *mesh, "pause=0.05", devices=devices)
    wait_for_lines(tmp_path / "killed", after, process)
    time.sleep(draw.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"seed {seed}"
  assert finish(start(tmp_path / "killed", *mesh, devices=devices)) == said, f"seed {seed}"
  assert lines(tmp_path / "killed") == lines(tmp_path / "whole"), f"seed {seed}"
  train = [e["step"] for e in lines(tmp_path / "killed") if e["split"] == "train"]
  assert train == list(range(1, STEPS + 1))


def test_sigterm_saves_and_the_program_ends_well(tmp_path):
  process = start(tmp_path, "pause=0.1")
  wait_for_lines(tmp_path, 4, process)
  process.send_signal(signal.SIGTERM)
  step = int(finish(process).removeprefix("interrupted "))
  assert 4 <= step < STEPS
  assert [p.name for p in (tmp_path / "checkpoints" / "toy").iterdir()] == [f"{step:08d}"]
  assert finish(start(tmp_path)).startswith(f"done {STEPS}")


def start_two(folder, *arguments):
  return [start(folder, "data=2", *arguments, **variables) for variables in cluster()]


def test_two_processes_train_to_the_losses_of_one(tmp_path):
  finish(start(tmp_path / "one"))
  said = [finish(process) for process in start_two(tmp_path / "two")]
  assert said[0] == said[1]
  one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
  assert [(e["step"], e["split"]) for e in one] == [(e["step"], e["split"]) for e in two]
  for a, b in zip(one, two, strict=True):
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
  both = start_two(tmp_path, "pause=0.2")
  wait_for_lines(tmp_path, 3, both[0])
  both[1].send_signal(signal.SIGTERM)
  said = [finish(process) for process in both]
  assert said[0] == said[1] and said[0].startswith("interrupted ")
  said = [finish(process) for process in start_two(tmp_path)]
  assert said[0] == said[1] and said[0].startswith(f"done {STEPS}")
  train = [e["step"] for e in lines(tmp_path) if e["split"] == "train"]
  assert train == list(range(1, STEPS + 1))
