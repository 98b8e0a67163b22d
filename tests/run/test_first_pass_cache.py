"""A run that keeps the first pass's states of its texts, from the data to the adapter."""

import itertools

import numpy as np
import pytest

from frozen_jax import main as command
from frozen_jax.core import paths
from frozen_jax.models.adapter_folder import read_adapter
from frozen_jax.training.metrics import read_metrics
from tests.processes import ROOT
from tests.run.conftest import CITIES, COUNTRIES
from tests.run.task_files import lines_file

ROWS = [
  {"question": f"What is the capital of {country}?", "answers": [city]}
  for country, city in itertools.product(COUNTRIES[:8], CITIES[:4])
]  # an epoch is four steps
ARGUMENTS = (
  "--config.stage_order=prompt,finetune",
  "--config.recursion.write=embeddings",
  "--config.stages.finetune.init_from=prompt=prompt/prompt",
  "--config.stages.finetune.train.steps=6",
  "--config.train.batch_size=8",
)
KEPT = "--config.recursion.cache_first_pass=True"


@pytest.fixture(scope="module")
def runs(train_stages, program, tmp_path_factory):
  """Workdirs of the same run with and without states that are kept."""
  folder, found = tmp_path_factory.mktemp("first_pass"), {}
  data = f"--config.data.train={lines_file(folder / 'train.jsonl', *ROWS)}"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    patch.setenv("FROZEN_JAX_CACHE", str(folder / "cache"))
    for name, more in (("kept", (KEPT,)), ("read in each step", ())):
      given = program.command("recursive.py:smoke", data, *ARGUMENTS, *more)[1:]
      found[name] = folder / name.replace(" ", "_")
      train_stages(command.parse(given).config, found[name])
  return found


def entries(workdir, split):
  stage = [entry for entry in read_metrics(workdir) if entry["stage"] == "finetune"]
  return [entry for entry in stage if entry["split"] == split]


def test_from_the_second_epoch_on_no_text_is_read(runs):
  found = [(e["first_pass_cached"], e["rows"]) for e in entries(runs["kept"], "train")]
  assert found == [(0, 8)] * 4 + [(8, 8)] * 2
  others = entries(runs["read in each step"], "train")
  assert not any("first_pass_cached" in entry for entry in others)


def test_the_same_is_trained(runs):
  for split in ("train", "validation"):
    ours, theirs = ([e["loss"] for e in entries(run, split)] for run in runs.values())
    assert len(ours) > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  ours, theirs = (
    paths.flatten(read_adapter(run / "adapters" / "finetune")[0]) for run in runs.values()
  )
  assert ours.keys() == theirs.keys()
  for path in ours:
    np.testing.assert_allclose(ours[path], theirs[path], atol=2e-5, err_msg=path)
