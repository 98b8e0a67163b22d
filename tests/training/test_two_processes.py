"""Two processes with four devices each train to the losses of one process with eight."""

import numpy as np
import pytest

from tests.processes import HANGS_AFTER, cluster, start
from tests.training.sharded_program import RE_RANKER, STEPS

pytestmark = pytest.mark.program

# Prompt tuning is in tests/run/test_stopping.py; eight devices against one are in tests/run and
# tests/methods.
METHODS = ("id_pt", "neural_recursion", RE_RANKER)
MESH = "data=2,fsdp=2,tensor=2"


def run(mesh, devices, clusters):
  """The losses that the first process prints, by method."""
  processes = [
    start("-m", "tests.training.sharded_program", mesh, *METHODS, devices=devices, **variables)
    for variables in clusters
  ]
  answers = [process.communicate(timeout=HANGS_AFTER) for process in processes]
  assert [process.returncode for process in processes] == [0] * len(processes), answers
  lines = [line.split() for line in answers[0][0].splitlines() if line.strip()]
  return {name: [float(line[1]) for line in lines if line[0] == name] for name in METHODS}


@pytest.fixture(scope="module")
def losses():
  return {
    "one process": run(MESH, 8, [{}]),
    "two processes": run(MESH, 4, cluster()),
  }


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_one_process(losses, method):
  one, two = (found[method] for found in losses.values())
  assert len(one) == len(two) == STEPS == len(set(one))
  # Sums across processes have an order of their own, of which each step of Adam makes more.
  np.testing.assert_allclose(two[:3], one[:3], rtol=1e-6)
  np.testing.assert_allclose(two, one, rtol=3e-6)
