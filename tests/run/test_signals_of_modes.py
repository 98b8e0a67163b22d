"""Evaluate, predict and export that are asked to stop: exit 0, and nothing is half written."""

import importlib
import itertools
import json
import os
import pkgutil
import shutil
import signal
import time

import pytest

from frozen_jax import run as verbs
from frozen_jax.core import files, interruption
from frozen_jax.core.errors import Interrupted
from tests.processes import start
from tests.run.settings_cases import QUESTIONS, with_value
from tests.run.test_signals import lost, made_an_error, passed_on

pytestmark = pytest.mark.program

MODES = ("evaluate", "predict", "export")
# Where a signal comes: as a model is loaded, as it compiles and answers, as files are written.
MOMENTS = [
  ("evaluate", "frozen_jax.run.evaluate", "load_model"),
  ("evaluate", "frozen_jax.run.evaluate", "load_adapter"),
  ("evaluate", "frozen_jax.decoding.engine.Engine", "run"),
  ("evaluate", "frozen_jax.run.evaluate", "make_record"),
  ("evaluate", "frozen_jax.run.results.records", "write_json"),
  ("evaluate", "frozen_jax.run.results.records", "draw_report"),
  ("predict", "frozen_jax.run.predict", "open_questions"),
  ("predict", "frozen_jax.run.evaluate", "load_model"),
  ("predict", "frozen_jax.decoding.engine.Engine", "run"),
  ("predict", "frozen_jax.run.predict", "prediction_rows"),
  ("predict", "frozen_jax.run.predict", "write_lines"),
  ("export", "frozen_jax.run.evaluate", "load_model"),
  ("export", "frozen_jax.models.adapter_folder.files", "write_bytes"),
]


@pytest.fixture
def finished(trained_stage, tmp_path):
  """(config, workdir) of a run whose adapter is there, with a question to answer."""
  config, workdir = trained_stage
  workdir = shutil.copytree(workdir, tmp_path / "run")
  shutil.copytree(workdir / "adapters" / "prompt", workdir / "adapter")
  asked = tmp_path / "asked.jsonl"
  asked.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
  return with_value(config, "predict.input", str(asked)), workdir


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def attribute(where, name):
  """A module or class by its dotted name, and its attribute."""
  owner = pkgutil.resolve_name(where)
  return owner, getattr(owner, name)


# What is lost as the last file is written changes nothing any more.
CASES = [
  (*moment, how)
  for moment in MOMENTS
  for how in (passed_on, made_an_error, lost)
  if how is not lost or moment[2] not in ("write_lines", "write_bytes")
]


@pytest.mark.parametrize("mode, where, name, how", CASES)
def test_a_signal_at_any_moment_leaves_what_was_there(
  finished, monkeypatch, capsys, mode, where, name, how
):
  config, workdir = finished
  before, handlers = contents(workdir), [signal.getsignal(one) for one in interruption.SIGNALS]
  number = signal.SIGINT if how is passed_on else signal.SIGTERM
  owner, function = attribute(where, name)
  monkeypatch.setattr(owner, name, how(function, number))
  with pytest.raises(Interrupted, match="^interrupted$"):
    getattr(verbs, mode)(config, workdir)
  assert contents(workdir) == before
  assert not list(workdir.glob("*/.*")) and not files._unfinished
  assert [signal.getsignal(one) for one in interruption.SIGNALS] == handlers
  assert "Traceback" not in capsys.readouterr().err


def test_an_evaluation_of_a_name_is_replaced_as_a_whole(finished, monkeypatch):
  config, workdir = finished
  config = with_value(config, "evaluation", "mine")
  verbs.evaluate(config, workdir)
  before = contents(workdir)
  owner, function = attribute("frozen_jax.run.results.records", "write_json")
  monkeypatch.setattr(owner, "write_json", passed_on(function, signal.SIGTERM))
  with pytest.raises(Interrupted):
    verbs.evaluate(config, workdir)
  assert contents(workdir) == before
  monkeypatch.undo()
  verbs.evaluate(config, workdir)
  assert [path.name for path in (workdir / "evaluations").iterdir()] == ["mine"]
  assert contents(workdir).keys() == before.keys()


def test_an_export_over_another_one_is_whole(finished, monkeypatch, tmp_path):
  config, workdir = finished
  target = tmp_path / "out"
  config = with_value(config, "export.folder", str(target))
  target.mkdir()
  (target / "mine.txt").write_text("kept")
  verbs.export(config, workdir)
  before = contents(target)
  files = {"README.md", "adapter.json", "adapter.safetensors"}
  assert {path.name for path in before} == {"mine.txt"} | files
  owner, function = attribute("frozen_jax.models.adapter_folder.files", "write_bytes")
  monkeypatch.setattr(owner, "write_bytes", passed_on(function, signal.SIGINT))
  with pytest.raises(Interrupted):
    verbs.export(with_value(config, "export.format", "adapter"), workdir)
  assert contents(target) == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl", "out", "run"]


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_lines_are_printed_whole(finished, monkeypatch, capsys, number):
  """The signal comes as the second of them is written: it is the last."""
  config, workdir = finished
  written = []

  def dumps(row, **options):
    written.append(row)
    if len(written) == 2:
      os.kill(os.getpid(), number)
    return json.dumps(row, **options)

  predict = importlib.import_module("frozen_jax.run.predict")
  monkeypatch.setattr(predict, "json", type("", (), {"dumps": staticmethod(dumps)}))
  with pytest.raises(Interrupted):
    verbs.predict(config, workdir)
  out = capsys.readouterr().out
  assert len(out.splitlines()) == 2 and out.endswith("}\n")
  assert len((workdir / "predictions.jsonl").read_text().splitlines()) == len(QUESTIONS)


def test_what_is_deferred_comes_at_the_end():
  done = []
  with pytest.raises(KeyError), interruption.handled_by(lambda: {}[done[-1]]):
    with interruption.deferred():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.01)
      done.append("whole")
    done.append("lost")
  assert done == ["whole"]


def test_a_run_that_does_not_stop_is_ended(monkeypatch):
  """As it is where code that is not ours waits for its threads; not where it stops in time."""
  monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.05)
  ended = []
  with interruption.ended_by(lambda: ended.append(1)):
    interruption.note()
    time.sleep(0.3)
    interruption.note(False)
  assert ended == [1]
  for withdrawn in (True, False):
    with interruption.ended_by(lambda: ended.append(1)):
      interruption.note()
      if withdrawn:
        interruption.note(False)
        time.sleep(0.2)
  time.sleep(0.2)
  assert ended == [1] and not interruption.requested()


WAITS = """
import os, signal, sys, time
from frozen_jax import main
from frozen_jax.core import interruption
interruption.GRACE_SECONDS = 0.5
def act(*_):
  from frozen_jax.core.files import temporary_folder
  from frozen_jax.run.interrupt import stoppable
  with stoppable(), temporary_folder(main.pathlib.Path(sys.argv[-1])) as folder:
    try:
      os.kill(os.getpid(), signal.SIGINT)
    finally:
      time.sleep(600)
main.parse = main.run = act
sys.argv = [sys.argv[0], "--mode=evaluate", sys.argv[-1]]
sys.exit(main.program())
"""


def test_a_command_that_waits_for_its_threads_is_ended(program, tmp_path):
  out, err = program.finish(start("-c", WAITS, str(tmp_path / "made")))
  assert out == "" and err.strip().splitlines()[-1].startswith("interrupted; nothing is left"), err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", interruption.SIGNALS)
@pytest.mark.parametrize("mode", MODES)
def test_the_program_says_one_line(call, program, finished, monkeypatch, mode, number):
  config, workdir = finished
  module = importlib.import_module("frozen_jax.run.evaluate")
  monkeypatch.setattr(module, "load_model", passed_on(module.load_model, number))
  before = contents(workdir)
  given = program.command(
    "prompt_tuning.py:smoke",
    f"--workdir={workdir}",
    f"--mode={mode}",
    f"--config.predict.input={config['predict']['input']}",
  )
  status, out, lines = call(*given[2:])
  assert (status, out) == (0, "")
  said = [line for line in lines if "interrupted" in line]
  assert len(said) == 1 and said == lines[-1:], lines
  assert "interrupted; nothing is left half written, the same command starts anew" in said[0]
  assert contents(workdir) == before


@pytest.mark.parametrize(
  "mode, number",
  [("evaluate", signal.SIGTERM), ("predict", signal.SIGINT), ("export", signal.SIGTERM)],
)
def test_a_process_ends_well_while_it_starts(program, tmp_path, mode, number):
  from tests.run.test_signals import starts

  process = start(
    *program.command("prompt_tuning.py:smoke", f"--workdir={tmp_path}", f"--mode={mode}"), anew=True
  )
  starts(process)
  process.send_signal(number)
  out, err = program.finish(process)
  assert out == "" and err.strip().startswith("interrupted; nothing is left"), err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.stress
@pytest.mark.parametrize("mode", MODES)
def test_a_process_at_any_time_of_its_life(program, prompt_run, tmp_path, mode):
  from tests.run.test_signals import starts

  workdir = shutil.copytree(prompt_run.workdir, tmp_path / "run")
  before, at, numbers = contents(workdir), 0.0, itertools.cycle(interruption.SIGNALS)
  while at < 60:
    process = start(
      *program.command("prompt_tuning.py:smoke", f"--workdir={workdir}", f"--mode={mode}"),
      anew=mode == "evaluate",  # of one of them the imports, too, are part of its life
    )
    starts(process)
    if mode == "predict":
      process.stdin.write("What is the capital of Peru?\n")
    process.stdin.close()
    process.stdin = None
    try:
      process.wait(at)
    except Exception:
      process.send_signal(next(numbers))
    out, err = program.finish(process)
    assert "Traceback" not in err and "error:" not in err, err
    if "interrupted" not in err:
      break
    assert all(line.endswith("}") for line in out.splitlines() if mode == "predict")
    new = {path: text for path, text in contents(workdir).items() if before.get(path) != text}
    assert mode == "evaluate" or not new or out, new
    assert all("evaluations" in str(path) for path in new if mode == "evaluate")
    at = 2 * at + 0.4
  else:
    pytest.fail("it never came to its end")
