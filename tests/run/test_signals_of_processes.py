"""Evaluate and predict in two processes, of which one or both are asked to stop."""

import json
import shutil
import signal

import pytest

from tests.processes import cluster, start
from tests.run.settings_cases import QUESTIONS
from tests.run.test_several_processes import errors

# The command of `sys.argv`, which waits before it answers.
WAITS = """
import sys, time
from frozen_jax import main
from frozen_jax.decoding.engine import Engine
def wait(*arguments, **options):
  print("waits", file=sys.stderr, flush=True)
  while True:
    time.sleep(0.01)
Engine.run = wait
sys.exit(main.program())
"""


@pytest.fixture
def workdir(trained_stage, tmp_path):
  folder = shutil.copytree(trained_stage[1], tmp_path / "run")
  shutil.copytree(folder / "adapters" / "prompt", folder / "adapter")
  (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
  return folder


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
  "mode, number, asked",
  [
    ("evaluate", signal.SIGTERM, (1,)),
    ("predict", signal.SIGINT, (0, 1)),
    ("predict", signal.SIGTERM, (0,)),
  ],
)
def test_all_end_in_good_order(program, workdir, mode, number, asked):
  """Those that are asked with exit status 0; another one with a line that says why."""
  command = program.command(
    "prompt_tuning.py:smoke",
    *(f"--workdir={workdir}", f"--mode={mode}", "--config.mesh.data=2"),
    f"--config.predict.input={workdir.parent / 'asked.jsonl'}",
  )
  before = contents(workdir)
  both = [start("-c", WAITS, *command[2:], **one) for one in cluster()]
  for process in both:
    lines = iter(process.stderr.readline, "")
    assert any(line == "waits\n" for line in lines), process.communicate()
  for index in asked:
    both[index].send_signal(number)
  for index, process in enumerate(both):
    out, err = program.finish(process, 0 if index in asked else 1)
    assert out == "" and "Traceback" not in err and "*** " not in err, err
    if index in asked:
      assert err.splitlines()[-1].endswith("the same command starts anew") and not errors(err)
    else:
      (line,) = errors(err)
      assert f"process {asked[0]} (host " in line and "it was interrupted" in line
  assert contents(workdir) == before
