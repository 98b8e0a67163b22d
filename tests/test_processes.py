"""The variables by which the processes of a session of tests share what they compile."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.processes import COMPILED, environment, share_compiled

SIN = "import jax; jax.jit(lambda x: jax.numpy.sin(x) * 3)(2.0).block_until_ready()"


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_a_folder_that_is_given_stays(monkeypatch, given):
  monkeypatch.setenv(COMPILED, given)
  assert share_compiled() is None and os.environ[COMPILED] == given


@pytest.mark.program
def test_a_process_reads_what_another_one_has_compiled(monkeypatch, tmp_path):
  """And where it reads the half of an entry it compiles, and says nothing."""
  monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != COMPILED})
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  folder = pathlib.Path(share_compiled())
  assert folder.parent == tmp_path

  def run():
    done = subprocess.run(
      [sys.executable, "-c", SIN], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}

  entries = run()
  assert any("lambda" in path.name for path in entries)
  assert run() == entries, "nothing is written again"
  for path in entries:
    path.write_bytes(path.read_bytes()[:20])
  run()
