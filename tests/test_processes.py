"""How tests start processes, and share what these compile."""

import os
import signal
import subprocess
import sys

import pytest

from tests import processes
from tests.processes import COMPILED, HANGS_AFTER, environment, share_compiled, start

SIN = "import jax; jax.jit(lambda x: jax.numpy.sin(x) * 3)(2.0).block_until_ready()"


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_a_folder_that_is_given_stays(monkeypatch, tmp_path, given):
  monkeypatch.setenv(COMPILED, given)
  share_compiled(tmp_path)
  assert os.environ[COMPILED] == given


@pytest.mark.program
def test_a_process_reads_what_another_one_has_compiled(monkeypatch, tmp_path):
  """And where it reads the half of an entry it compiles, and says nothing."""
  monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != COMPILED})
  folder = tmp_path / "compiled"
  share_compiled(folder)

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


def test_a_folder_that_has_grown_too_large_is_emptied(monkeypatch, tmp_path):
  monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != COMPILED})
  monkeypatch.setattr(processes, "MAX_COMPILED_BYTES", 10)
  for size, stays in ((10, True), (11, False)):
    folder = tmp_path / str(size)
    folder.mkdir()
    (folder / "entry").write_bytes(bytes(size))
    os.environ.pop(COMPILED, None)
    share_compiled(folder)
    assert folder.exists() == stays and os.environ[COMPILED] == str(folder)


SAYS = "import os, sys; print(__name__, sys.argv[1:], os.getcwd(), os.environ['GIVEN'], input())"
ENDS = {
  "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)": (3, "out\n", "err\n"),
  "import atexit; atexit.register(print, 'at exit')": (0, "at exit\n", ""),
  "import sys; sys.exit('a sentence')": (1, "", "a sentence\n"),
  "import os; os.kill(os.getpid(), 15)": (-15, "", ""),
  "import atexit, os; atexit.register(print, 'at exit'); os._exit(4)": (4, "", ""),
}


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_a_process_is_what_python_runs(tmp_path, how, anew):
  file = tmp_path / "says.py"
  file.write_text(SAYS)
  program = {"-c": ["-c", SAYS], "-m": ["-m", "says"], "file": [file]}[how]
  process = start(*program, 1, "b c", cwd=tmp_path, anew=anew, GIVEN="x")
  out, err = process.communicate("asked\n", timeout=HANGS_AFTER)
  assert (process.returncode, err) == (0, "")
  assert out == f"__main__ ['1', 'b c'] {tmp_path} x asked\n"


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("code", ENDS)
def test_a_process_ends_as_python_does(code, anew):
  process = start("-c", code, anew=anew)
  out, err = process.communicate(timeout=HANGS_AFTER)
  assert (process.returncode, out, err) == ENDS[code]


@pytest.mark.parametrize("anew", [False, True])
def test_a_process_can_be_waited_for_and_killed(anew):
  process = start("-c", "print('up', flush=True); import time; time.sleep(60)", anew=anew)
  assert process.stdout.readline() == "up\n" and process.poll() is None
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.05)
  process.kill()
  assert process.wait(timeout=10) == process.poll() == -signal.SIGKILL
  process.send_signal(signal.SIGTERM)  # of a process that is no more: nothing
  process.communicate()
