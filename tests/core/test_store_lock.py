"""The lock of a workdir on a store, between processes of one machine and of several."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from frozen_jax.core import store_lock
from frozen_jax.core.errors import UserError
from frozen_jax.core.store_lock import StoreLock, this_process
from frozen_jax.core.user_path import user_path
from frozen_jax.run import lock

pytestmark = pytest.mark.program

ELSEWHERE = this_process() | {"host": "node-b", "machine": "another one"}


@pytest.fixture
def workdir(store, request, monkeypatch):
  monkeypatch.setattr(store_lock, "BEAT", 0.05)
  monkeypatch.setattr(store_lock, "DEAD", 2.5)  # S3's times are in seconds
  monkeypatch.setattr(store_lock, "_LOOK", 0.05)
  return user_path(f"{store.url}/{request.node.name}")


def test_a_live_one_of_this_machine_is_refused_at_once(workdir):
  with lock.locked(workdir):
    who = f"in use by a run, process {os.getpid()} on host .* since 20.*--workdir"
    with pytest.raises(UserError, match=who), lock.locked(workdir):
      pass
  assert not workdir.exists()
  with lock.locked(workdir):
    pass


def test_a_live_one_of_another_machine_is_refused(workdir):
  other = StoreLock(workdir, ELSEWHERE)
  assert other.take() is None
  with pytest.raises(UserError, match="on host node-b since"), lock.locked(workdir):
    pass
  other.release()
  assert not workdir.exists()


def test_a_dead_one_of_another_machine_is_taken_over(workdir):
  begun = time.monotonic()
  (workdir / ".lock-000003").create(json.dumps(ELSEWHERE).encode())
  with lock.locked(workdir):
    assert [path.name for path in workdir.iterdir()] == [".lock-000004"]
  assert 2 < time.monotonic() - begun < 15


@pytest.mark.parametrize("left", ["{", "[]", "{}"])
def test_one_that_says_nothing_is_dead_when_it_does_not_change(workdir, left):
  (workdir / ".lock-000001").create(left.encode())
  with lock.locked(workdir):
    assert [path.name for path in workdir.iterdir()] == [".lock-000002"]


def test_of_a_process_of_this_machine_that_has_ended_nobody_waits(workdir, monkeypatch):
  monkeypatch.setattr(store_lock, "DEAD", 1000.0)
  ended = subprocess.run(
    [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
  )
  gone = this_process() | {"process": int(ended.stdout)}
  another = this_process() | {"started": "1"}  # the number went to another process
  for holder in (gone, another):
    (workdir / ".lock-000001").create(json.dumps(holder).encode())
    with lock.locked(workdir):
      pass
    assert not workdir.exists()


def test_of_several_one_gets_it(workdir):
  locks, taken = [StoreLock(workdir, ELSEWHERE) for _ in range(4)], []
  threads = [threading.Thread(target=lambda one=one: taken.append(one.take())) for one in locks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert taken.count(None) == 1
  assert len(store_lock._locks(workdir)) == 1
  for one in locks:
    one.release()


def test_who_has_lost_it_is_told(workdir):
  said, told = [], threading.Event()
  mine = StoreLock(workdir, ELSEWHERE, lost=lambda text: (said.append(text), told.set()))
  assert mine.take() is None
  (workdir / ".lock-000002").create(json.dumps(this_process()).encode())
  assert told.wait(10)
  assert f"the lock of {workdir} was lost: process {os.getpid()}" in said[0]
  mine.release()
