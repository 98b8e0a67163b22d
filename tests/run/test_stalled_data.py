"""Whole programs whose data stalls: in the threads that read ahead, and where it is opened."""

import pytest

from tests.processes import HANGS_AFTER, cluster, start
from tests.run.error_line import only_error
from tests.run.settings_cases import QUESTIONS
from tests.run.task_files import lines_file

PROGRAM = """
import sys, time
from frozen_jax import main
from frozen_jax.data import batches

collate, calls = batches.TrainingBatches._collate_batch, []

def stall(self, indices):
  calls.append(indices)
  if len(calls) > 1:
    time.sleep(300)
  return collate(self, indices)

batches.TrainingBatches._collate_batch = stall
sys.exit(main.program())
"""


def test_it_is_named_and_the_program_ends(program, tmp_path):
  arguments = program.command("prompt_tuning.py:smoke", f"--workdir={tmp_path}")[2:]
  process = start("-c", PROGRAM, *arguments, "--config.data.timeout=2")
  _, err = process.communicate(timeout=HANGS_AFTER)
  assert "no batch has come from world_facts/train for 2 s; waiting" in err
  assert "no batch has come from world_facts/train for 4 s; see" in only_error(
    process.returncode, err.splitlines()
  )


A_ROW = """
import sys, time
from frozen_jax import main
from frozen_jax.data.json_lines import JsonLines
JsonLines.__getitem__ = lambda self, index: time.sleep(300)
sys.exit(main.program())
"""


@pytest.mark.parametrize("mode", ["train", "predict"])
def test_a_row_that_does_not_come_ends_any_mode(program, prompt_run, tmp_path, mode):
  path = lines_file(tmp_path / "rows.jsonl", *QUESTIONS)
  workdir = tmp_path / "run" if mode == "train" else prompt_run.workdir
  flags = (f"--workdir={workdir}", f"--mode={mode}", "--config.data.timeout=1")
  flags += (f"--config.data.test={path}", f"--config.predict.input={path}")
  process = start("-c", A_ROW, *program.command("prompt_tuning.py:smoke", *flags)[2:])
  out, err = process.communicate(timeout=HANGS_AFTER)
  assert out == "" and f"no row has come from {path} for 1 s; waiting" in err
  said = only_error(process.returncode, err.splitlines())
  assert f"no row has come from {path} for 2 s; see whether its files" in said


def test_a_process_whose_data_stalls_ends_the_other(program, tmp_path):
  path = lines_file(tmp_path / "rows.jsonl", *QUESTIONS)
  flags = (f"--workdir={tmp_path / 'run'}", "--config.mesh.data=2", "--config.data.timeout=1")
  command = program.command("prompt_tuning.py:smoke", *flags, f"--config.data.test={path}")
  first, second = cluster()
  other = start(*command, **first)
  process = start("-c", A_ROW, *command[2:], **second)
  _, err = process.communicate(timeout=HANGS_AFTER)
  said = only_error(process.returncode, err.splitlines())
  _, err = program.finish(other, status=1)
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert "process 1 (host " in line and said.removeprefix("error: ")[:60] in line
