"""What a misspelt or misplaced word of a command line most likely means."""

import pytest

import frozen_jax
from frozen_jax import main as command
from frozen_jax.tools import ask, compare, cost, inspect


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
    ("--hlep", "--help"),
    ("-hlep", "--help"),
    ("--hlep=yes", "--help"),
    ("--helpfull", "--help"),
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


@pytest.mark.parametrize("argument", ["--hlep", "--confi=lora", "--workdri=x"])
def test_a_misspelt_flag_is_found_beside_right_ones(refused, argument):
  assert "did you mean --" in refused("--config=lora", argument, "--help")


@pytest.mark.parametrize("mode, meant", [("trian", "train"), ("predcit", "predict")])
def test_a_misspelt_mode(refused, mode, meant):
  said = refused("--config=lora", f"--mode={mode}")
  assert f"--mode={mode}; did you mean {meant}?; it is one of train, evaluate" in said


@pytest.mark.parametrize("name", ["flagfile", "undefok"])
def test_flags_of_absl_that_are_none_of_ours(refused, name):
  assert f"unknown flag --{name}" in refused("--config=lora", f"--{name}=x")


def test_a_key_without_an_experiment_is_not_passed_over(refused):
  assert "no experiment given" in refused("--help", "--config.train.stesp=4")


@pytest.mark.parametrize("tool", [ask, compare, cost, inspect])
def test_a_misspelt_flag_of_a_tool(tool, capsys):
  assert tool.main(["--hlep"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "error: unknown flag --hlep; did you mean --help?"


@pytest.mark.parametrize("argument", ["--zzz", "zzz", "--zzz.zzz=1"])
def test_nothing_is_suggested_for_what_is_near_nothing(refused, argument):
  assert "did you mean" not in refused("--config=lora", argument)


def test_stages_that_keep_their_own_are_named():
  given = ["--config.train.steps=300", "--config.data.train=mine.jsonl", "--config.seed=1"]
  given += ["--config.stages.pretrain.data.train=other.jsonl", "--config.data.lengths=128"]
  parsed = command.parse(["main", "--config=recursive:paper", *given])
  assert parsed.notes == (
    "stage prompt keeps its own train.steps=120; --config.stages.prompt.train.steps=... changes it",
    "stage pretrain keeps its own train.steps=40; --config.stages.pretrain.train.steps=... changes"
    " it",
  )
  assert command.parse(["main", "--config=lora", "--config.train.steps=300"]).notes == ()


NOBODY = "no stage of this run (lora: lora)"


@pytest.mark.parametrize(
  "config, given, notes",
  [
    ("lora", ["lora.rank=4", "prompt.length=3", "train.learning_rate.lora=0.1", "seed=1"], []),
    ("lora", ["adapters.bottleneck=4"], [f"config.adapters is not read: {NOBODY} has a"]),
    ("lora", ["recursion.passes=3", "recursion.connector.width=8"], ["config.recursion is not"]),
    ("lora", ["prompt.text=Hi"], [f"config.prompt is not read: {NOBODY} has a method that does"]),
    ("lora", ["train.learning_rate.prompt=1"], [f"rate.prompt is not read: {NOBODY} trains"]),
    ("prompt_tuning", ["lora.rank=4", "p_tuning.width=8"], ["config.lora is", "config.p_tuning"]),
    (
      "compare_methods",
      ["stage_order=lora", "adapters.bottleneck=4", "stages.adapters.seed=3"],
      [f"config.adapters is not read: {NOBODY}", "config.stages.adapters is not read: it is not"],
    ),
  ],
)
def test_what_no_stage_reads_is_named(config, given, notes):
  keys = [f"--config.{one}" for one in given]
  found = command.parse(["main", f"--config={config}", *keys]).notes
  assert len(found) == len(notes)
  assert all(wanted in said for said, wanted in zip(found, notes, strict=True))


@pytest.mark.parametrize("key", ["reader.budget=3", "candidates.samples=2", "loar.rank=3"])
def test_a_section_that_there_is_not_is_refused(refused, key):
  assert "unknown config key" in refused("--config=lora", f"--config.{key}")


def test_the_version_is_printed(call):
  assert call("--version") == (0, f"frozen_jax {frozen_jax.__version__}\n", [])
