"""What a misspelt or misplaced word of a command line most likely means."""

import pytest

import frozen_jax
from frozen_jax import main as command


@pytest.mark.parametrize(
  "argument, meant",
  [
    # a word without dashes
    ("recursive", "--config=recursive"),
    ("configs/recursive.py", "--config=configs/recursive.py"),
    ("recusive:smoke", "--config=recursive:smoke"),
    ("predict", "--mode=predict"),
    ("trian", "--mode=train"),
    ("config=recursive", "--config=..."),
    ("train.steps=5", "--config.train.steps=..."),
    ("config.train.step=5", "--config.train.steps=..."),
    # a misspelt flag
    ("--confg=recursive", "--config"),
    ("--Mode=train", "--mode"),
    ("--work_dir=x", "--workdir"),
    ("--verison", "--version"),
    # a key without its `config.`, or with another word in its place
    ("--train.steps=5", "--config.train.steps"),
    ("--steps=5", "--config.train.steps"),
    ("--lora.rnk=4", "--config.lora.rank"),
    ("--confg.data.lengths=4", "--config.data.lengths"),
    ("--cfg.model.dtype=bfloat16", "--config.model.dtype"),
  ],
)
def test_what_was_most_likely_meant(refused, argument, meant):
  assert refused(argument).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("argument", ["--zzz", "zzz", "--zzz.zzz=1"])
def test_nothing_is_suggested_for_what_is_near_nothing(refused, argument):
  assert "did you mean" not in refused("--config=lora", argument)


def test_stages_that_keep_their_own_are_named():
  given = ["--config.train.steps=300", "--config.data.train=mine.jsonl", "--config.seed=1"]
  given += ["--config.stages.pretrain.data.train=other.jsonl", "--config.data.lengths=128"]
  parsed = command.parse(["main", "--config=recursive", *given])
  assert parsed.notes == (
    "stage prompt keeps its own train.steps=80; --config.stages.prompt.train.steps=... changes it",
    "stage pretrain keeps its own train.steps=40; --config.stages.pretrain.train.steps=... changes"
    " it",
  )
  assert command.parse(["main", "--config=lora", "--config.train.steps=300"]).notes == ()


def test_the_version_is_printed(call):
  assert call("--version") == (0, f"frozen_jax {frozen_jax.__version__}\n", [])
