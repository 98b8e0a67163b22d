"""sky.yaml: SkyPilot's own check, and what its script runs on every node."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from frozen_jax.sharding.hosts import initialize_arguments
from tests.launch.presets import LAUNCH, PRESETS, mesh

TASK = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
PYTHON = f"""#!{sys.executable}
import json, os, sys
names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
print(json.dumps([sys.argv[1:], {{name: os.environ[name] for name in names}}]))
"""


def test_skypilot_takes_it():
  sky = pytest.importorskip(
    "sky", reason="SkyPilot is not installed; .ci/run installs it in the end for this test"
  )
  task = sky.Task.from_yaml(str(LAUNCH / "sky.yaml"))
  assert task.run == TASK["run"] and task.num_nodes == 1
  (resources,) = task.resources
  assert list(resources.accelerators) == [f"tpu-{PRESETS['v5e-16']['accelerator_type']}"]


@pytest.mark.parametrize(
  "preset, words",
  [
    (TASK["envs"]["PRESET"], ["--config=a", "--workdir=b"]),
    ("h100-8", ["--config=a", "--config.gains=('the Connector: control over late_prompt',)"]),
    ("h100-8", []),
  ],
)
def test_every_node_runs_main_and_knows_the_others(tmp_path, preset, words):
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(PYTHON)
  python.chmod(0o755)
  (tmp_path / "launch").symlink_to(LAUNCH)
  nodes = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3",
    "SKYPILOT_NUM_NODES": "3",
    "SKYPILOT_NODE_RANK": "2",
  }
  own = {"PRESET": preset, "ARGS": " ".join(f'"{word}"' for word in words)}
  env = {**os.environ, **TASK["envs"], **nodes, **own}
  said = subprocess.check_output(["bash", "-c", TASK["run"]], cwd=tmp_path, env=env, text=True)
  arguments, variables = json.loads(said)
  axes = zip(("data", "fsdp", "tensor"), mesh(PRESETS[preset]), strict=True)
  flags = [f"--config.mesh.{axis}={size}" for axis, size in axes]
  assert arguments == ["-m", "frozen_jax.main", *flags, *words]
  started = initialize_arguments(variables)
  assert started["coordinator_address"] == "10.0.0.1:12321"
  assert (started["num_processes"], started["process_id"]) == (3, 2)
