"""Whole runs whose workdir, data and model are on an object store, against emulators."""

import json

import pytest

from frozen_jax.core.user_path import user_path
from tests import object_stores

CONFIG = "prompt_tuning.py:smoke"
STEPS = ("--config.train.steps=6", "--config.train.checkpoint_every=2")


@pytest.fixture(scope="module", params=object_stores.SCHEMES)
def store(request):
  with object_stores.store(request.param) as running:
    yield running


def losses(workdir):
  lines = (user_path(workdir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [(row["step"], row["split"], row["loss"]) for row in rows]
