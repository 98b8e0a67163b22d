"""Every experiment's config builds, plain and in each variant, and is one that a run takes."""

import dataclasses
import json
import pathlib
import re

import pytest

from frozen_jax.config import overrides
from frozen_jax.config.config_file import load_config
from frozen_jax.core.errors import UserError
from frozen_jax.data.builtin import BUILTIN_SPECS
from frozen_jax.main import default_workdir
from frozen_jax.methods import METHODS
from frozen_jax.run.early_checks import check_position
from frozen_jax.run.settings import help_text, resolve_run, with_defaults
from tests.methods.tiny import CONFIG, base

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
KEYS = (
  "model.name",
  "model.dtype",
  "model.quantize",
  "seed",
  "data.train",
  "data.validation",
  "data.test",
  "train.steps",
  "train.batch_size",
  "train.log_every",
  "evaluate.max_examples",
  "mesh.data",
  "mesh.fsdp",
  "mesh.tensor",
  "init_from",
)


def variants(path):
  """What the config itself says that there is, after an unknown variant."""
  with pytest.raises(UserError) as caught:
    load_config(f"{path}:no-such-variant")
  return re.search(r"there are: (.*)$", str(caught.value))[1].split(", ")


EVERY = [
  pytest.param(path, variant, id=f"{path.stem}-{variant or 'plain'}")
  for path in CONFIGS
  for variant in ("", *variants(path))
]


def built(path, variant):
  return load_config(f"{path}:{variant}" if variant else str(path))


@pytest.mark.parametrize("path, variant", EVERY)
def test_it_builds_and_resolves(path, variant):
  config = with_defaults(built(path, variant))
  assert set(KEYS) <= set(overrides.known_keys(config))
  run = resolve_run(config)
  assert json.loads(json.dumps(run.values)) == run.values
  assert [stage.name for stage in run.stages] == list(config.stage_order)
  for stage in run.stages:
    for split in ("train", "validation", "test"):
      spec = getattr(stage.data, split)
      assert spec in BUILTIN_SPECS or spec.startswith("tfds:") or ".jsonl" in spec
    assert stage.train.learning_rate.keys() == METHODS[stage.method].learning_rates.keys()


@pytest.mark.parametrize("path, variant", EVERY)
def test_its_links_join_parts_that_act_alike(path, variant):
  """On an LM of ten layers, of which fractions of the depth are different ones."""
  methods, lm = {}, base(dataclasses.replace(CONFIG, layers=10))
  for stage in resolve_run(built(path, variant)).stages:
    method = METHODS[stage.method].build(lm, stage.sections, datasets=("a", "b"))
    for part, link in {**stage.init_from, **stage.frozen_inputs}.items():
      check_position(stage.name, part, link, method, methods[link.partition("/")[0]])
    methods[stage.name] = method


@pytest.mark.parametrize("path, variant", EVERY)
def test_what_is_resolved_resolves_to_the_same(path, variant):
  """So a run's config.json is compared with the config that it came from."""
  run = resolve_run(built(path, variant))
  assert resolve_run(run.values) == run


@pytest.mark.parametrize("path, variant", EVERY)
def test_its_help_has_a_line_for_each_key(path, variant):
  config = with_defaults(built(path, variant))
  lines = help_text(config).splitlines()
  flags = [line.split("=")[0].strip() for line in lines if line.startswith("  --config.")]
  assert len(set(flags)) == len(flags)
  assert set(flags) <= {f"--config.{key}" for key in overrides.known_keys(config)}
  assert set(flags) >= {f"--config.{key}" for key in KEYS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_does_the_same_work_with_fewer_steps(path):
  plain, smoke = (resolve_run(built(path, variant)) for variant in ("", "smoke"))
  assert [stage.name for stage in smoke.stages] == [stage.name for stage in plain.stages]
  assert smoke.train.log_every == 1
  for full, short in zip(plain.stages, smoke.stages, strict=True):
    assert short.method == full.method
    assert 0 < short.train.steps < full.train.steps
    assert short.train.log_every == 1
    for split in ("train", "validation", "test"):
      assert getattr(short.data, split) == getattr(full.data, split)


def test_the_prompt_alone_learns_the_first_hop():
  run = resolve_run(load_config("configs/second_pass.py:first_hop"))
  fields = {stage.name: stage.data.fields for stage in run.stages}
  assert fields == {"prompt": ("answers=first_hop",), "control": (), "second_pass": ()}
  assert all(stage.frozen_inputs == {"first_prompt": "prompt/prompt"} for stage in run.stages[1:])


def test_rivals_without_that_prompt_learn_the_first_hop_as_long():
  run = resolve_run(load_config("configs/second_pass.py:all_first_hop"))
  stages = {stage.name: stage for stage in run.stages}
  taught = {name for name, stage in stages.items() if stage.data.fields}
  assert taught == {"prompt", "lora_first_hop", "prefix_first_hop"}
  assert len({stages[name].train.steps for name in taught}) == 1
  for rival in ("lora", "prefix"):
    assert stages[rival].init_from == {rival: f"{rival}_first_hop/{rival}"}
    assert stages[rival].train.steps == stages["second_pass"].train.steps


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_text_holds_the_command(path):
  assert f"python -m frozen_jax.main --config=configs/{path.name}" in path.read_text()


def test_the_workdir_is_named_after_the_experiment():
  assert default_workdir("configs/recursive.py") == "runs/recursive"
  assert default_workdir("configs/recursive.py:smoke") == "runs/recursive-smoke"


def test_a_config_is_locked():
  config = built(CONFIGS[0], "")
  with pytest.raises(AttributeError):
    config.nonsense = 1
