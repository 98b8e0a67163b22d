"""The presets fit themselves and the compiler for TPUs; shellcheck finds nothing in any script."""

import json
import math
import os
import subprocess
import sys

import pytest
import yaml

from tests.launch.presets import LAUNCH, PRESETS, ROOT, TPUS, mesh

# Prints the number of hosts and the mesh. A process of its own: it may look for no TPU.
SLICE = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
from frozen_jax.tools.pod_plan.topology import topology_devices, topology_mesh
topology, *sizes = sys.argv[1:]
hosts = {device.process_index for device in topology_devices(topology)}
sizes = dict(zip(("data", "fsdp", "tensor"), map(int, sizes)))
print(json.dumps([len(hosts), *topology_mesh(topology, sizes).shape.values()]))
"""


def test_there_is_each_preset_and_the_docs_name_it():
  assert list(PRESETS) == ["v5e-16", "v5e-256", "v5p-128", "v6e-256", "h100-8", "h200-8"]
  docs = (ROOT / "docs" / "pods.md").read_text()
  assert [name for name in PRESETS if f"`{name}`" not in docs] == []


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_numbers_of_a_preset_fit_each_other(preset):
  kind, _, chips = preset["name"].partition("-")
  chips = int(chips)
  assert int(preset["hosts"]) * int(preset["chips_per_host"]) == chips
  assert math.prod(mesh(preset)) == chips
  if preset["topology"] != "-":
    assert math.prod(int(size) for size in preset["topology"].split("x")) == chips
    cores = 2 if kind == "v5p" else 1  # of a chip, as the names of accelerators count
    assert int(preset["accelerator_type"].rpartition("-")[2]) == cores * chips


@pytest.mark.parametrize("name", TPUS)
def test_the_compiler_for_tpus_knows_the_slice_its_hosts_and_its_mesh(name):
  pytest.importorskip("libtpu")
  preset = PRESETS[name]
  topology = f"{name.partition('-')[0]}:{preset['topology']}"
  done = subprocess.run(
    [sys.executable, "-c", SLICE, topology, *map(str, mesh(preset))],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},  # other tests have it open
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == [int(preset["hosts"]), *mesh(preset)]


def shellcheck(*arguments):
  done = subprocess.run(["shellcheck", *arguments], capture_output=True, text=True)
  return done.stdout + done.stderr


def test_shellcheck_finds_nothing():
  scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"]
  assert len(scripts) == 5
  assert shellcheck(*scripts) == ""


def test_shellcheck_finds_nothing_in_what_skypilot_runs(tmp_path):
  task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
  for part in ("setup", "run"):
    script = tmp_path / part
    script.write_text(f"#!/bin/bash\n{task[part]}")
    assert shellcheck("--exclude=SC2153,SC2154", script) == ""  # SkyPilot sets the variables
