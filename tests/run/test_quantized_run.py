"""A whole run on quantised weights."""

import json

import pytest

import frozen_jax


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
  """configs/prompt_tuning.py:smoke on four-bit weights, run to its end: its workdir."""
  folder = tmp_path_factory.mktemp("runs") / "quantised"
  how = ("--config.model.quantize=int4", "--config.model.dtype=bfloat16")
  program.run("prompt_tuning.py:smoke", f"--workdir={folder}", *how)
  return folder


def test_it_trains(run):
  lines = map(json.loads, (run / "metrics.jsonl").open())
  losses = [line["loss"] for line in lines if line["split"] == "train"]
  assert len(losses) > 1 and losses[-1] < losses[0]


def test_its_adapter_fits_the_model_in_any_precision(run, tiny, lm):
  narrow = frozen_jax.load_frozen(str(tiny), dtype="bfloat16", quantize="int4")
  assert narrow.fingerprint == lm.fingerprint
  for base in (narrow, lm):
    answers = frozen_jax.load_adapter(run, base).generate(["What is the capital of Peru?"])
    assert isinstance(answers[0], str)
