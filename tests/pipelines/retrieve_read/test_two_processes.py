"""A reader in two processes of two devices each is that of one process with four."""

import json

import numpy as np
import pytest

from frozen_jax.training.metrics import read_metrics
from tests.pipelines.artifact_digests import artifact_digests
from tests.processes import HANGS_AFTER, cluster, start

STAGES = ("re_ranker", "reader")


def train(workdir, given, devices, variables):
  flags = [f"--config.{key}={value}" for key, value in given.items()]
  command = ("-m", "frozen_jax.main", "--config=configs/frozen_reader.py:smoke")
  return start(*command, f"--workdir={workdir}", *flags, devices=devices, **variables)


@pytest.fixture(scope="module")
def given(tiny, bi_encoder, files):
  """The smoke config with one stage, two rankings and a batch that four devices divide."""
  return {
    **files,
    "model.name": tiny,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 1,
    "stage_order": "reader",
    "baseline": "zero_shot",
    "prompt.length": 4,
    "data.lengths": 120,
    "evaluate.max_new_tokens": 4,
    "train.validate_examples": 2,
    "reader.encoder": bi_encoder,
    "reader.depth": 12,
    "reader.recall_at": "1,4",
    "reader.questions": 2,
    "reader.budgets": 110,
    "reader.budget": 110,
    "reader.rankings": "blended",
    "reader.re_ranker.base": bi_encoder,
    "reader.re_ranker.length": 32,
    "reader.re_ranker.batch_size": 4,
    "reader.re_ranker.dtype": "float32",
  }


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory):
  """The workdirs of one process, and of two."""
  folder = tmp_path_factory.mktemp("runs")
  for name, devices, clusters in (("one", 4, [{}]), ("two", 2, cluster())):
    processes = [train(folder / name, given, devices, variables) for variables in clusters]
    said = [process.communicate(timeout=HANGS_AFTER) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said[0][1][-3000:]
    assert all("Traceback" not in err for _, err in said)
    assert not any(out for out, _ in said[1:]), "the first one alone prints"
  return folder / "one", folder / "two"


def losses(folder, stage):
  found = [line for line in read_metrics(folder) if line["stage"] == stage]
  return [(line["split"], line["step"], line["loss"]) for line in found]


@pytest.mark.parametrize("stage", STAGES)
def test_losses(runs, stage):
  one, two = (losses(folder, stage) for folder in runs)
  assert [line[:2] for line in one] == [line[:2] for line in two] and len(one) >= 4
  np.testing.assert_allclose([line[2] for line in two], [line[2] for line in one], rtol=1e-6)


def rows_and_scores(path):
  """The rows of a file without what is rounded apart, and that: scores of passages, losses."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  scores = [one.pop("score") for row in rows for one in row["passages"]]
  for row in rows:
    scores += [row.pop("loss", 0.0), *row.pop("losses", {}).values()]
  return rows, np.asarray(scores)


def assert_equal_but_for_rounding(paths):
  (first, scores), (second, others) = map(rows_and_scores, paths)
  assert first == second and any(row["passages"] for row in first)
  # Sums across processes have an order of their own; each step of the re-ranker makes more of it.
  np.testing.assert_allclose(scores, others, rtol=5e-4, atol=1e-4)


def test_what_is_retrieved_ranked_packed_and_answered(runs):
  one, two = (artifact_digests(folder / "reader") for folder in runs)
  assert one.keys() == two.keys()
  retrieved = [name for name in one if name.startswith("retrieved")]
  assert len(retrieved) == 3 and {n: one[n] for n in retrieved} == {n: two[n] for n in retrieved}
  packed = [name for name in one if name.startswith("packed")]
  assert len(packed) == 3
  for name in packed:
    assert_equal_but_for_rounding([folder / "reader" / name for folder in runs])
  assert_equal_but_for_rounding([folder / "predictions.jsonl" for folder in runs])
  results = [json.loads((folder / "results.json").read_text()) for folder in runs]
  assert results[0]["retrieval"] == results[1]["retrieval"]
  assert not list(runs[1].rglob(".*of-another-host"))
