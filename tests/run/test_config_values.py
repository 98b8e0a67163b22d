"""What a config leaves out has its default, and what it may not have is refused."""

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.methods import METHODS
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.run.defaults import RUN_KEYS
from frozen_jax.run.settings import resolve_run
from frozen_jax.training.settings import TrainSettings
from tests.run.settings_cases import prompt_tuning_config, with_value


@pytest.fixture
def config():
  return prompt_tuning_config("model", "train.jsonl", "validation.jsonl")


def test_what_a_config_leaves_out_has_its_default():
  run = resolve_run({"stage_order": ["only"], "stages": {"only": {"method": "lora"}}})
  assert run.train == TrainSettings(learning_rate=run.train.learning_rate)
  assert run.stages[0].sections == {"lora": METHODS["lora"].sections["lora"]()}
  assert run.stages[0].train.learning_rate == METHODS["lora"].learning_rates
  for key, field in RUN_KEYS.items():
    value = field.default
    section, _, name = key.rpartition(".")
    if key != "stage_order":
      found = (run.values[section] if section else run.values)[name]
      assert found == (list(value) if isinstance(value, tuple) else value), key


def test_an_entry_of_a_stage_is_laid_over_the_run():
  config = {
    "stage_order": ["first", "second"],
    "train": {"steps": 7, "batch_size": 2, "warmup_steps": 1},
    "seed": 3,
    "stages": {
      "first": {"method": "prompt_tuning", "train": {"steps": 5}, "prompt": {"length": 2}},
      "second": {"method": "prompt_tuning", "init_from": ["prompt=first/prompt"], "seed": 4},
    },
  }
  first, second = resolve_run(config).stages
  assert (first.train.steps, first.train.batch_size) == (5, 2)
  assert (second.train.steps, second.train.batch_size) == (7, 2)
  assert (first.seed, second.seed) == (3, 4)
  assert first.sections["prompt"] == first.prompt == PromptSettings(length=2)
  assert second.sections["prompt"] == PromptSettings()
  assert (first.init_from, second.init_from) == ({}, {"prompt": "first/prompt"})


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("nonsense", 1, "unknown config key config.nonsense; config has .*train"),
    ("trian", {"steps": 1}, r"unknown config key config.trian; did you mean config.train\?"),
    ("train.step", 1, r"unknown config key config.train.step; did you mean config.train.steps\?"),
    ("lora.rnak", 1, r"unknown config key config.lora.rnak; did you mean config.lora.rank\?"),
    ("export.fromat", "peft", r"unknown config key config.export.fromat; did you mean .*format\?"),
    ("train.learning_rate.promt", 0.1, "unknown config key config.train.learning_rate.promt"),
    ("stages.prompt.train.learning_rate.promt", 0.1, "unknown config key .*learning_rate.promt"),
    ("stages.prompt.train", 3, "config.stages.prompt.train is 3; it is a section"),
    ("stages.prompt", 3, "config.stages.prompt is no section"),
    ("export", "peft", "config.export is 'peft'; it is a section"),
    ("seed", "one", "config.seed is 'one', but it takes a value such as 0"),
    ("stage_order", "prompt", "config.stage_order is 'prompt', but it takes a value such as"),
    ("stages.prompt.lenghts", 1, "unknown config key config.stages.prompt.lenghts"),
    ("stages.prompt.train.step", 1, "unknown config key .*train.step; did you mean"),
    ("stages.prompt.prompt.size", 1, "unknown config key .*prompt.size"),
    ("stages.prompt.stage_order", ["prompt"], "unknown config key .*stages.prompt.stage_order"),
    ("stages.prompt.evaluation", "x", "did you mean config.evaluation, of the run as a whole"),
    ("stages.prompt.lora", {"rank": 4}, "prompt.lora.rank is not read .*, prompt_tuning; no stage"),
    ("stages.prompt.train", {"learning_rate": {"lora": 1.0}}, "learning_rate.lora is not read by"),
    ("train.steps", 1.5, "config.train.steps is 1.5, but it takes a whole number"),
    ("train.steps", True, "config.train.steps is True, but it takes a whole number"),
    ("train.weight_decay", "much", "config.train.weight_decay is 'much', but it takes a number"),
    ("train", 3, "config.train is 3; it is a section"),
    ("data.lengths", 64, "config.data.lengths is 64, but it takes a list"),
    ("stages.prompt.method", "magic", "stage prompt has method 'magic'; there are: .*lora"),
    ("stages.prompt.init_from", ["prompt"], "'prompt' is not of the form name=value"),
    ("stages.prompt.init_from", ["prompt=none/prompt"], "prompt=none/prompt names no stage"),
    ("stages.prompt.mesh.data", 2, "stages.prompt.mesh cannot be: mesh is the same for all"),
    ("stages.prompt.cascade.compute_budget", 1.5, "stages.prompt.cascade cannot be"),
    ("stages.prompt.model.name", "other", "model.name cannot be: .*; of its own it can have remat"),
    ("stages.prompt.model.dtype", "float32", "stages.prompt.model.dtype cannot be"),
    ("stages.prompt.reader.depth", 9, "reader.depth cannot be: .* it can have ranking, budget"),
    ("stages.prompt.candidates.samples", 2, "candidates.samples cannot be: .* all stages$"),
    (
      "train.weight_decay",
      float("nan"),
      "train.weight_decay is nan; it must be a finite number, at least 0",
    ),
    ("train.clip_norm", -1.0, "train.clip_norm is -1.0; it must be at least 0"),
    ("stage_order", [], "config.stage_order is empty"),
    ("stage_order", ["other"], "config.stage_order names stage 'other'; config.stages has prompt"),
    ("stop_after", "pack", "stop_after is 'pack'; it is empty or one of nothing else"),
    ("seeds", 3, "config.seeds is 3, but it takes a value such as"),
    ("seeds", [3], "seeds is 3 alone; give several seeds, as 0,1,2, or --config.seed=3 for one"),
    ("seeds", [0, 1, 0], "config.seeds has a seed twice: 0, 1, 0; give each once"),
    ("seeds", ["1", 1], "config.seeds has a seed twice: 1, 1"),
    ("seeds", ["0-2"], "config.seeds holds '0-2'; write whole numbers, as 0,1,2"),
    ("seeds", [0, 1.0], "config.seeds holds 1.0; write whole numbers"),
    ("seeds", [0, True], "config.seeds holds True; write whole numbers"),
    ("stages.prompt.seeds", [0, 1], "did you mean config.seeds, of the run as a whole"),
  ],
)
def test_what_cannot_be_is_refused(config, key, value, message):
  with pytest.raises(UserError, match=message):
    resolve_run(with_value(config, key, value))


def test_a_key_of_another_stage_is_answered_with_that_stage():
  stages = {"first": {"method": "prompt_tuning", "lora": {"rank": 4}}, "second": {"method": "lora"}}
  with pytest.raises(UserError, match=r"did you mean config.stages.second.lora.rank\?"):
    resolve_run({"stage_order": ["first", "second"], "stages": stages})
  stages["first"] = {"method": "prompt_tuning", "train": {"learning_rate": {"lora": 0.1}}}
  with pytest.raises(UserError, match=r"mean config.stages.second.train.learning_rate.lora\?"):
    resolve_run({"stage_order": ["first", "second"], "stages": stages})
