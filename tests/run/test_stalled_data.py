"""A whole program whose data stalls in the threads that read ahead."""

from tests.run.error_line import only_error

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
  process = program.start("-c", PROGRAM, *arguments, "--config.data.timeout=2")
  _, err = process.communicate(timeout=120)
  assert "no batch has come from world_facts/train for 2 s; waiting" in err
  assert "no batch has come from world_facts/train for 4 s; see" in only_error(
    process.returncode, err.splitlines()
  )
