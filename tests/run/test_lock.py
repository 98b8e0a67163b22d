"""One run, one workdir."""

import json
import os
import re
import signal
import socket

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.run import lock
from frozen_jax.run.evaluate import _put
from tests.processes import start

HOLD = """
import pathlib, socket, sys, time
socket.gethostname = lambda: sys.argv[2]
from frozen_jax.run.lock import locked
with locked(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_second_run_is_refused_with_the_first_ones_host_and_process(tmp_path):
  for host in (socket.gethostname(), "node-b"):  # and of another host, on a shared file system
    other = start("-c", HOLD, tmp_path, host)
    assert other.stdout.readline() == "held\n"
    who = rf"in use by a run, process {other.pid} on host {re.escape(host)} since 20.*--workdir"
    for _ in range(2):
      with pytest.raises(UserError, match=who), lock.locked(tmp_path):
        pass
    other.send_signal(signal.SIGKILL)  # what it leaves behind holds nobody up
    other.communicate()
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["process"] == other.pid
    with lock.locked(tmp_path):
      assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["process"] == os.getpid()
  assert (tmp_path / lock.LOCK_FILE).read_text() == ""


@pytest.mark.parametrize(
  "left", ["", "{", '{"host": "gone", "process": 1, "since": "2020-01-01"}', '{"process": 1}']
)
def test_a_file_that_nobody_locks_holds_nobody_up(tmp_path, left):
  (tmp_path / lock.LOCK_FILE).write_text(left)
  with lock.locked(tmp_path):
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["process"] == os.getpid()


def test_it_ends_with_an_exception_too(tmp_path):
  with pytest.raises(KeyboardInterrupt), lock.locked(tmp_path):
    raise KeyboardInterrupt
  with lock.locked(tmp_path):
    pass


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock.fcntl, "flock", flock)
  with lock.locked(tmp_path):
    pass
  assert "has no locks" in caplog.text


def test_the_program_refuses_a_live_workdir_and_leaves_it_alone(program, tmp_path):
  with lock.locked(tmp_path):
    _, err = program.finish(program.train("prompt_tuning.py:smoke", tmp_path), status=2)
  assert re.match(rf"error: {tmp_path} is in use by a run, process {os.getpid()} ", err)
  assert err.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK_FILE]


def test_evaluations_at_one_time_have_folders_of_their_own(tmp_path):
  made = [tmp_path / str(number) for number in range(4)]
  for folder in made:
    folder.mkdir()
    (folder / "results.json").write_text(folder.name)
  place = tmp_path / "test"
  folders = [_put(folder, place, anew=True) for folder in made[:3]]
  assert [folder.name for folder in folders] == ["test", "test-2", "test-3"]
  assert _put(made[3], place, anew=False) == place, "that of a given name is replaced"
  assert {path.name: path.joinpath("results.json").read_text() for path in tmp_path.iterdir()} == {
    "test": "3",
    "test-2": "1",
    "test-3": "2",
  }
