"""A run takes all devices without being told."""

import re

import pytest

from frozen_jax.training.metrics import read_metrics


def test_the_default_mesh_takes_all_devices_and_says_so(program, prompt_run, tmp_path):
  """Eight, for the batch of 8 rows; the losses are those of one device."""
  arguments = ("--config.mesh.data=0", "--config.train.steps=2")
  process = program.train("prompt_tuning.py:smoke", tmp_path, *arguments, devices=8)
  _, err = program.finish(process)
  assert re.search(r"using 8 of 8 devices \(cpu\): data=8 x fsdp=1 x tensor=1\n", err)
  assert err.count("using ") == 1
  ours, theirs = (
    [line["loss"] for line in read_metrics(folder) if (line["split"], line["step"]) == ("train", 1)]
    for folder in (tmp_path, prompt_run.workdir)
  )
  assert ours == pytest.approx(theirs, rel=1e-5) and ours


def test_the_default_is_all(program):
  from frozen_jax.config.config_file import load_config
  from frozen_jax.run.settings import resolve_run
  from tests.processes import ROOT

  run = resolve_run(load_config(f"{ROOT}/configs/recursive.py:paper"))
  assert (run.mesh.data, run.mesh.fsdp, run.mesh.tensor) == (0, 1, 1)
  assert run.rows == 8, "what 32 and 8, the batches of its stages, have in common"
