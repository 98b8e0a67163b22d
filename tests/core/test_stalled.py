"""Sources that do not answer in time are named, once, and then something is done about them."""

import contextlib
import gzip
import logging
import os
import threading
import time

import pytest

from frozen_jax.core import reading, stalled
from frozen_jax.core.stalled import waits_for
from frozen_jax.data import sources
from frozen_jax.data.json_lines import JsonLines
from tests.run.task_files import lines_file

TIMEOUT = 0.2


@pytest.fixture
def said(caplog):
  caplog.set_level(logging.WARNING, logger="frozen_jax")
  return lambda: [record.getMessage() for record in caplog.records]


def test_one_is_named_and_after_as_long_again_given_up(said):
  ended = []
  with stalled.watched(TIMEOUT, ended.append), waits_for("hf:slow/train"):
    time.sleep(1.6 * TIMEOUT)
    assert said() == ["no row has come from hf:slow/train for 0.2 s; waiting"] and not ended
    time.sleep(1.2 * TIMEOUT)
  assert len(said()) == 1
  (message,) = ended
  assert message.startswith("no row has come from hf:slow/train for 0.4 s; see whether")
  assert message.endswith("or raise data.timeout")


def test_those_that_answer_are_not(said):
  ended = []
  with stalled.watched(TIMEOUT, ended.append):
    for _ in range(8):  # slow, but each in time
      with waits_for("slow.jsonl"):
        time.sleep(TIMEOUT / 3)
    with waits_for("outer"):
      time.sleep(TIMEOUT / 2)
      with waits_for("inner"):
        time.sleep(TIMEOUT / 3)
    time.sleep(3 * TIMEOUT)
  with stalled.watched(0, ended.append), waits_for("any"):
    time.sleep(3 * TIMEOUT)
  assert said() == [] and ended == [] and not stalled._waiting


def test_threads_are_looked_at_one_by_one(said):
  go = threading.Event()

  def read():
    with waits_for("thread.jsonl"):
      go.wait(60)

  thread = threading.Thread(target=read)
  with stalled.watched(TIMEOUT, lambda _: go.set()):
    thread.start()
    for _ in range(20):
      with waits_for("main.jsonl"):
        time.sleep(TIMEOUT / 10)
    thread.join()
  assert said() == ["no row has come from thread.jsonl for 0.2 s; waiting"]


@contextlib.contextmanager
def seen_in(monkeypatch, owner, name):
  """What is waited for while `owner.name` runs."""
  found, function = [], getattr(owner, name)

  def look(*arguments):
    found.extend(source for source, _ in stalled._waiting.values())
    return function(*arguments)

  with monkeypatch.context() as patched:
    patched.setattr(owner, name, look)
    yield found


ROWS = [{"dataset": name, "input": f"{name}?", "target": "yes"} for name in "ab"]


def test_rows_of_a_source_are_waited_for(monkeypatch, tmp_path):
  """On opening, where they are all read, and by index."""
  path = str(lines_file(tmp_path / "rows.jsonl", *ROWS))
  with seen_in(monkeypatch, JsonLines, "__getitem__") as found:
    source = sources.open_source(path)
    assert len(found) == 3 and set(found) == {path}
    assert source[1]["input"] == "b?" and len(found) == 4
  from frozen_jax.data.prepared import PreparedRows

  prepared = PreparedRows(ROWS, "hf:x/train", lambda: iter([b"a", b"b"]), ())
  assert prepared.digest == PreparedRows(ROWS, "hf:y/train", lambda: [b"a", b"b"], ()).digest
  assert not stalled._waiting


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_waited_for_but_what_is_typed_is_not(monkeypatch, tmp_path, packed):
  data = bytes(range(256)) * 20_000
  path = tmp_path / ("file.gz" if packed else "file")
  path.write_bytes(gzip.compress(data) if packed else data)
  entered = []
  monkeypatch.setattr(reading, "waits_for", lambda name: entered.append(name) or waits_for(name))
  with reading.open_unpacked(path) as file:
    assert file.read(5) == data[:5]
    assert b"".join(file) == data[5:]
  assert set(entered) == {str(path)}
  with reading.open_unpacked(path) as file:
    assert file.read() == data
  entered.clear()
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  writer = threading.Thread(target=lambda: pipe.write_bytes(b"one\ntwo\n"))
  writer.start()
  with reading.open_unpacked(pipe) as file:
    assert list(file) == [b"one\n", b"two\n"]
  writer.join()
  assert entered == []
