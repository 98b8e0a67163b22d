"""A checkpoint of one mesh goes on on others, to the losses of a run that was never broken off."""

import shutil

import pytest

from frozen_jax import main as command
from frozen_jax.training.metrics import read_metrics
from tests.processes import ROOT

pytestmark = pytest.mark.program

# data, fsdp and tensor of eight devices
FIRST = (2, 2, 2)
OTHERS = {"one device": (1, 1, 1), "rows": (8, 1, 1), "weights": (1, 4, 2)}
# A Connector and a prompt are trained, so that there is no need for a run of prompt tuning.
ARGUMENTS = (
  "--config.stage_order=prompt,finetune",
  "--config.recursion.write=embeddings",
  "--config.stages.finetune.init_from=prompt=prompt/prompt",
  "--config.train.final_fraction=1.0",  # rates that do not depend on the number of steps
  "--config.train.validate_every=1",
  "--config.train.validate_examples=8",
)


@pytest.fixture(scope="module")
def train_on(train_stages, program):
  """`train_on(workdir, mesh, steps)`: trains the recursion's last stage."""

  def run(workdir, mesh, steps):
    arguments = (*ARGUMENTS, f"--config.stages.finetune.train.steps={steps}")
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in axes]
    given = program.command("recursive.py:smoke", *arguments, *sizes)
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(ROOT)
      train_stages(command.parse(given[1:]).config, workdir)
    return figures(workdir)

  return run


def figures(workdir):
  """(step, split, loss) of the last stage's lines."""
  lines = list(read_metrics(workdir))
  found = [line for line in lines if line["stage"] == lines[-1]["stage"]]
  return [(line["step"], line["split"], line["loss"]) for line in found]


@pytest.fixture(scope="module")
def begun(train_on, tmp_path_factory):
  """The workdir of two steps on the first mesh."""
  workdir = tmp_path_factory.mktemp("begun") / "run"
  train_on(workdir, FIRST, 2)
  return workdir


@pytest.fixture(scope="module")
def whole(train_on, tmp_path_factory):
  """The figures of four steps on it."""
  return train_on(tmp_path_factory.mktemp("whole") / "run", FIRST, 4)


@pytest.mark.parametrize("mesh", OTHERS)
def test_losses_are_those_of_the_mesh_it_began_on(train_on, begun, whole, tmp_path, mesh):
  workdir = shutil.copytree(begun, tmp_path / "run")
  found = train_on(workdir, OTHERS[mesh], 4)
  assert [line[:2] for line in found] == [line[:2] for line in whole]
  assert max(step for step, _, _ in found) == 4
  assert [line[2] for line in found] == pytest.approx([line[2] for line in whole], rel=1e-5)
