"""Programs whose output nobody reads any more, or that write to a full disk."""

import subprocess
import sys

import pytest

from tests.processes import environment

PROGRAM = """
import sys
from frozen_jax.core.errors import exit_status
from frozen_jax.core.streams import own_streams
if "own" in sys.argv:
  own_streams()
def work():
  print("ready", flush=True)
  sys.stdin.readline()
  for line in range(5000):
    print("a line of output", line)
    print("progress", file=sys.stderr, end="\\r")
  if "done" in sys.argv:
    open(sys.argv[-1], "w").close()
sys.exit(exit_status(work))
"""


@pytest.mark.parametrize("own", ["own", "plain"])
def test_a_reader_that_goes_away_ends_nothing_and_nothing_is_said(tmp_path, own):
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, own, "done", str(tmp_path / "done")],
    env=environment(),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  process.stdout.close()
  process.stdin.write("go\n")
  process.stdin.close()
  err = process.stderr.read()
  assert process.wait() == 0
  assert err.replace("progress", "").strip() == ""
  assert (tmp_path / "done").exists() == (own == "own"), "our own streams let the work go on"


def run(stdout, stderr):
  with open(stdout, "w") as out, open(stderr, "w") as err:
    command = [sys.executable, "-c", PROGRAM, "own"]
    return subprocess.run(command, env=environment(), input=b"\n", stdout=out, stderr=err)


def test_standard_output_on_a_full_disk_is_an_error_in_one_line(tmp_path):
  assert run("/dev/full", tmp_path / "err").returncode == 2
  said = (tmp_path / "err").read_text().replace("progress\r", "")
  assert said.startswith("error: cannot write") and "No space left on device" in said
  assert said.count("\n") == 1


def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
  assert run(tmp_path / "out", "/dev/full").returncode == 0
  assert len((tmp_path / "out").read_text().splitlines()) == 5001
