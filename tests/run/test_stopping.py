"""Whole programs that are killed, asked to stop, spread over devices, or two on one run."""

import json
import pathlib
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest

from frozen_jax import main as command
from frozen_jax.run.results.records import table_rows
from frozen_jax.training.metrics import read_metrics
from tests.processes import ROOT, cluster

pytestmark = pytest.mark.stress

TOLERANCE = 1e-5
EIGHT = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
STAGES = ("prompt", "control")  # of recursive.py: the second takes the first one's prompt
TWO_STAGES = f"--config.stage_order={','.join(STAGES)}"
FIGURES = ("stage", "step", "split", "loss", "grad_norm", "perplexity", "accuracy")


def lines(workdir, stages=None):
  """The figures of metrics.jsonl, of some stages or of all."""
  return [
    {name: entry[name] for name in FIGURES if name in entry}
    for entry in read_metrics(workdir)
    if stages is None or entry["stage"] in stages
  ]


def assert_agree(ours, theirs, tolerance):
  assert [list(a.items())[:3] for a in ours] == [list(b.items())[:3] for b in theirs]
  for a, b in zip(ours, theirs, strict=True):
    assert a["loss"] == pytest.approx(b["loss"], rel=tolerance), a


def results(workdir):
  return json.loads((workdir / "results.json").read_text())


def figures(workdir):
  """The rows of the table without those figures that depend on the clock."""
  rows = table_rows(results(workdir)).items()
  clock = "tokens_per_second"
  return {name: {key: own[key] for key in own if key != clock} for name, own in rows}


def predicted(workdir):
  """(rows of predictions.jsonl without losses, the losses of each)."""
  rows = [json.loads(line) for line in (workdir / "predictions.jsonl").open()]
  losses = [[row.pop("loss"), *row.pop("losses").values()] for row in rows]
  return rows, losses


def wait_for_lines(workdir, count, process):
  """Until metrics.jsonl has so many lines, or the process has ended."""
  end = time.monotonic() + 240
  while len(read_metrics(workdir)) < count and process.poll() is None:
    assert time.monotonic() < end
    time.sleep(0.005)


def test_killed_then_stopped_it_goes_on_as_if_nothing_had_been(program, recursive_run, tmp_path):
  """SIGKILL in the first stage, then SIGTERM later on, each at a random step; one device.

  Its stages train as they do among those of a whole run.
  """
  seed = random.randrange(10**6)
  draw = random.Random(seed)
  whole = lines(recursive_run.workdir, STAGES)
  first = draw.randrange(1, len(whole) - 6)

  process = program.train("recursive.py:smoke", tmp_path, TWO_STAGES)
  wait_for_lines(tmp_path, first, process)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL, f"seed {seed}"
  assert not (tmp_path / "results.json").exists()

  # More than there are now: lines that no checkpoint answers for are first taken away.
  second = draw.randrange(len(read_metrics(tmp_path)) + 1, len(whole))
  process = program.train("recursive.py:smoke", tmp_path, TWO_STAGES)
  wait_for_lines(tmp_path, second, process)
  process.send_signal(signal.SIGTERM)
  _, err = program.finish(process)
  assert re.search(r"interrupted at step \d+", err), f"seed {seed}\n{err}"
  assert not (tmp_path / "results.json").exists()

  program.finish(program.train("recursive.py:smoke", tmp_path, TWO_STAGES))
  assert lines(tmp_path) == whole, f"seed {seed}"
  ours, theirs = figures(tmp_path), figures(recursive_run.workdir)
  assert ours == {name: theirs[name] for name in ("zero_shot", *STAGES)}
  for name in STAGES:
    path = f"adapters/{name}/adapter.safetensors"
    assert (tmp_path / path).read_bytes() == (recursive_run.workdir / path).read_bytes(), name


def test_stopped_while_it_still_starts_it_ends_well(program, tmp_path):
  process = program.train("recursive.py:smoke", tmp_path)
  status = pathlib.Path(f"/proc/{process.pid}/status")
  caught = lambda: int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
  while not caught() >> (signal.SIGTERM - 1) & 1:
    time.sleep(0.005)
  process.send_signal(signal.SIGTERM)
  _, err = program.finish(process)
  assert "interrupted at step 0" in err


@pytest.fixture(scope="module")
def train_on_eight(program, train_stages):
  """`train_on_eight(workdir)`: trains the stages on eight devices, in this process."""

  def train(workdir):
    given = program.command("recursive.py:smoke", *EIGHT, TWO_STAGES)
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(ROOT)
      train_stages(command.parse(given[1:]).config, workdir)

  return train


@pytest.fixture(scope="module")
def on_eight(train_on_eight, tmp_path_factory):
  """The workdir of the stages on data=2 x fsdp=2 x tensor=2."""
  workdir = tmp_path_factory.mktemp("eight")
  train_on_eight(workdir)
  return workdir


def test_eight_devices_train_to_the_losses_of_one(on_eight, recursive_run):
  assert_agree(lines(on_eight), lines(recursive_run.workdir, STAGES), TOLERANCE)


def test_killed_on_eight_devices_the_remaining_losses_are_the_same_bits(
  program, train_on_eight, on_eight, tmp_path
):
  seed = random.randrange(10**6)
  whole = lines(on_eight)
  process = program.train("recursive.py:smoke", tmp_path, *EIGHT, TWO_STAGES, devices=8)
  wait_for_lines(tmp_path, random.Random(seed).randrange(1, len(whole)), process)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL, f"seed {seed}"
  train_on_eight(tmp_path)
  assert lines(tmp_path) == whole, f"seed {seed}"


def test_eight_devices_answer_like_one(program, recursive_run, tmp_path):
  """The adapter of the last stage, and the untrained LM."""
  folder = shutil.copytree(recursive_run.workdir / "adapter", tmp_path / "adapter")
  program.run("recursive.py:smoke", f"--workdir={folder}", "--mode=evaluate", *EIGHT)
  (evaluation,) = (folder / "evaluations").iterdir()
  ours, one = results(evaluation), results(recursive_run.workdir)
  assert ours["frozen_unchanged"] is True
  assert ours["frozen_fingerprint"] == one["frozen_fingerprint"]
  (zero_shot, found), expected = figures(evaluation).values(), figures(recursive_run.workdir)
  assert zero_shot == pytest.approx(expected["zero_shot"], rel=TOLERANCE)
  assert found == pytest.approx(expected["finetune"], rel=TOLERANCE)
  (answers, losses), (rows, of_one) = map(predicted, (evaluation, recursive_run.workdir))
  for row in rows:  # of the other stages, there are adapters in the workdir alone
    row["predictions"] = {"zero_shot": row["predictions"]["zero_shot"]}
  assert answers == rows
  np.testing.assert_allclose(losses, [row[:2] for row in of_one], rtol=TOLERANCE)


def start_two(program, config, workdir):
  mesh = "--config.mesh.data=2"
  return [program.train(config, workdir, mesh, **variables) for variables in cluster()]


def test_two_processes_are_one_run(program, prompt_run, tmp_path):
  """Against one process with the same mesh, and against one device."""
  both = start_two(program, "prompt_tuning.py:smoke", tmp_path / "two")
  (out, _), (silent, _) = [program.finish(process) for process in both]
  program.finish(
    program.train("prompt_tuning.py:smoke", tmp_path / "one", "--config.mesh.data=2", devices=2)
  )
  assert lines(tmp_path / "two") == lines(tmp_path / "one")
  assert_agree(lines(tmp_path / "two"), lines(prompt_run.workdir), TOLERANCE)
  for name, own in figures(tmp_path / "two").items():
    assert any(
      line.startswith(name) and f"{own['exact_match']:.3f}" in line for line in out.splitlines()
    ), name
  assert silent.strip() == "", "the first process alone speaks"
  (answers, losses), (expected, of_one) = (predicted(tmp_path / name) for name in ("two", "one"))
  assert answers == expected
  np.testing.assert_allclose(losses, of_one, rtol=TOLERANCE)
