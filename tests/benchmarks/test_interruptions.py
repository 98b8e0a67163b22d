"""The matrix of interruptions: cells as they are run, and what it finds wrong in a cell."""

import json
import os
import pkgutil
import signal
import subprocess
import sys

import pytest

from benchmarks import interruptions
from benchmarks.interrupted import FILLER, FULL, PLACES, Called, once
from tests.processes import ROOT, environment

SAYS = "12:00:00 interrupted at step 4; the same command goes on from there"


def row(event, status, left="prompt at 5", repeated=0, differs=()):
  return interruptions.Row("in step 3", event, status, "", left, repeated, 0, list(differs), [])


@pytest.mark.unit
@pytest.mark.parametrize(
  "cell, text",
  [
    (row("SIGTERM", 0), SAYS),
    (row("SIGINT", 0), SAYS),
    (row("SIGKILL", -9, repeated=2), ""),
    (row(FULL, 2), "error: cannot write results.json"),
  ],
)
def test_a_cell_as_it_should_be(cell, text):
  assert interruptions.judged(cell, text, newest=4) == []


@pytest.mark.unit
@pytest.mark.parametrize(
  "cell, text, wrong",
  [
    (row("SIGTERM", 1), SAYS, "status 1, not 0"),
    (row("SIGTERM", 0), SAYS.replace("4", "5"), "another step than 4"),
    (row("SIGINT", 0), f"Traceback (most recent call last)\n{SAYS}", "a traceback"),
    (row("SIGINT", 0), f"error: cannot read\n{SAYS}", "1 error lines"),
    (row("SIGKILL", -9, repeated=3), "", "too many steps"),
    (row("SIGKILL", -9, left="prompt at 5; results.json"), "", "not interrupted"),
    (row(FULL, 2), "", "0 error lines"),
    (row(FULL, 2, differs=["metrics.jsonl"]), "error: no", "other metrics.jsonl"),
  ],
)
def test_what_is_wrong_with_a_cell(cell, text, wrong):
  (found,) = interruptions.judged(cell, text, newest=4)
  assert wrong in found


@pytest.mark.unit
def test_what_is_left(tmp_path):
  assert interruptions.look(tmp_path / "none") == ("nothing", 0, 0)
  for name in ("prompt/00000005", "baseline/00000002", "baseline/00000004.orbax-checkpoint-tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  (tmp_path / ".results.json.a1b2").touch()
  lines = [{"stage": "prompt", "step": 5, "split": "train"}]
  lines += [{"stage": "baseline", "step": step, "split": "train"} for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  left, repeated, newest = interruptions.look(tmp_path)
  assert left == "prompt at 5; baseline at 2; half-written 00000004; half-written results.json"
  assert (repeated, newest) == (1, 2)


@pytest.mark.unit
def test_the_functions_that_places_name_are_there():
  for place in PLACES.values():
    if isinstance(place, Called):
      assert callable(pkgutil.resolve_name(place.function)), place


@pytest.mark.unit
def test_a_place_is_come_to_once_by_the_numbered_call(monkeypatch, tmp_path):
  monkeypatch.setattr(interruptions, "machine", lambda: "here")
  acted = []
  Called("benchmarks.interruptions:machine", 2).watch(lambda: acted.append(len(acted)))
  assert [interruptions.machine() for _ in range(3)] == ["here"] * 3
  assert acted == [0]
  monkeypatch.setattr("benchmarks.interrupted.fill", lambda folder: (folder / FILLER).touch())
  act = once(FULL, tmp_path)
  act()
  (tmp_path / FILLER).unlink()
  act()
  assert not (tmp_path / FILLER).exists()


@pytest.mark.unit
def test_an_event_is_the_signal_of_its_name_to_the_process_itself(monkeypatch, tmp_path):
  sent = []
  monkeypatch.setattr("os.kill", lambda *given: sent.append(given))
  act = once("SIGKILL", tmp_path)
  act()
  act()
  assert sent == [(os.getpid(), signal.SIGKILL)] and signal.SIGKILL == 9


def mounts():
  command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "t", "/mnt"]
  try:
    return subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    return False


def test_cells_as_they_are_run(tmp_path):
  event = FULL if mounts() else "SIGKILL"
  place = "writing the checkpoint of step 4"
  assert place in PLACES
  arguments = [f"--places={place}", f"--events={event}", f"--json={tmp_path / 'rows'}"]
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.interruptions", *arguments],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
  (row,) = json.loads((tmp_path / "rows").read_text())["rows"]
  if event == FULL:
    assert row["status"] == 2 and "the checkpoint of step 2 is intact" in row["said"]
  else:
    assert row["status"] == -9
    assert row["left"] == "prompt at 5; baseline at 2; half-written 00000004"
