"""Settings: what a stage depends on, what it does not, and what a config leaves out."""

import contextlib
import dataclasses
import functools
import gzip
import re
import shutil

import pytest

from frozen_jax.config.dependencies import changed, record
from frozen_jax.config.dependencies import key as fingerprint
from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.methods import METHODS
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.run import settings
from frozen_jax.run.defaults import RUN_KEYS, SECTIONS
from frozen_jax.run.settings import resolve_run
from frozen_jax.training.settings import TrainSettings
from tests.run.settings_cases import (
  QUESTIONS,
  fields_of,
  prompt_tuning_config,
  values_to_try,
  with_value,
)
from tests.run.task_files import lines_file

TRAINED = sorted(name for name, method in METHODS.items() if method.learning_rates)


@functools.cache
def default_stage(method):
  return stage_of(method)


def stage_of(method, key="", value=None):
  """The only stage of a config, with a value for one dotted key."""
  config = {"stage_order": ["only"], "stages": {"only": {"method": method}}}
  return resolve_run(with_value(config, key, value) if key else config).stages[0]


# --- what a stage depends on

FIELDS = [
  pytest.param(method, key, field, value, id=f"{method}-{key}")
  for method in TRAINED
  for name, section in default_stage(method).dependencies().items()
  if dataclasses.is_dataclass(section)
  # What all methods share is taken once.
  if name in METHODS[method].sections or method == "prompt_tuning"
  for key, field, value in fields_of(section, name)
]
OTHERS = [
  pytest.param("prompt_tuning", key, field, value, id=key)
  for name in ("mesh", "evaluate", "cascade")
  for key, field, value in fields_of(SECTIONS[name](), name)
]


# Of the data and the model: what a training under the defaults does not read.
UNREAD = {"model.cache", "data.encoder_length", "data.temperature", "data.cap"}


def after_another_value(method, key, field, value):
  """The stage with another value for the key, one that the config can have; and that value."""
  for other in values_to_try(field, value):
    with contextlib.suppress(UserError):
      return stage_of(method, key, other), other
  raise AssertionError(f"{key} takes none of the values that were tried")


@pytest.mark.parametrize("method, key, field, value", FIELDS)
def test_the_fingerprint_changes_with_a_field_that_affects_the_result(method, key, field, value):
  """Through the config: its value reaches the stage, and what a checkpoint records of it."""
  before = default_stage(method).dependencies()
  stage, _ = after_another_value(method, key, field, value)
  after = stage.dependencies()
  section = key.partition(".")[0]
  arrived = stage.sections.get(section) or getattr(stage, section)
  default = default_stage(method)
  assert arrived != (default.sections.get(section) or getattr(default, section))
  expected = [key] if field.metadata["affects_result"] and key not in UNREAD else []
  if key == "train.epochs":  # which replace the steps
    expected = ["train.steps", key]
  found = changed(after, record(before))
  assert [one for one in found if one == key or not one.startswith(f"{key}.")] == expected
  assert (fingerprint(after) != fingerprint(before)) == bool(expected)


@pytest.mark.parametrize("method, key, field, value", OTHERS)
def test_the_fingerprint_does_not_depend_on_how_a_run_is_spread_or_scored(
  method, key, field, value
):
  before = default_stage(method).dependencies()
  after = after_another_value(method, key, field, value)[0].dependencies()
  assert changed(after, record(before)) == [] and fingerprint(after) == fingerprint(before)


@pytest.mark.parametrize(
  "method, given, key, value",
  [
    ("id_pt", {}, "data.encoder_length", 64),
    ("lora", {"data.sampling": "temperature"}, "data.temperature", 3.0),
    ("lora", {"data.sampling": "temperature"}, "data.cap", 5),
    ("lora", {"data.sampling": "proportional"}, "data.cap", 5),
  ],
)
def test_what_is_read_under_some_settings_counts_under_them(method, given, key, value):
  config = {"stage_order": ["only"], "stages": {"only": {"method": method}}}
  for name, one in given.items():
    config = with_value(config, name, one)
  before, after = (
    resolve_run(one).stages[0].dependencies() for one in (config, with_value(config, key, value))
  )
  assert changed(after, record(before)) == [key]


def test_the_method_and_the_seed_are_dependencies():
  before = stage_of("lora").dependencies()
  for name, value in (("method", "adapters"), ("seed", 1)):
    assert changed({**before, name: value}, record(before)) == [name]


def test_every_field_has_a_line_of_help():
  for method in TRAINED:
    for name, section in default_stage(method).dependencies().items():
      if dataclasses.is_dataclass(section):
        for key, field, _ in fields_of(section, name):
          text = field.metadata["help"]
          assert text and "\n" not in text and not re.search(r"[^.]\.$", text), key


# --- what the trained numbers do not depend on


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """The data of the small run: {split: path}."""
  folder = tmp_path_factory.mktemp("questions")
  return {
    split: lines_file(folder / f"{split}.jsonl", *QUESTIONS) for split in ("train", "validation")
  }


@pytest.fixture(scope="module")
def config(tiny, files):
  return prompt_tuning_config(tiny, files["train"], files["validation"])


@pytest.fixture(scope="module")
def trained(config, train_stages, tmp_path_factory):
  """The workdir of the small run, which has trained its stage and scored nothing."""
  workdir = tmp_path_factory.mktemp("settings") / "run"
  train_stages(config, workdir)
  return workdir


def arrays(workdir):
  return (workdir / "adapters" / "prompt" / "adapter.safetensors").read_bytes()


def other_values(tiny, encoder, files, folder):
  """Another value for each field that does not affect the result of the run."""
  copied = folder / "copied.jsonl.gz"
  copied.write_bytes(gzip.compress(files["train"].read_bytes()))
  # `data.fields` apply to it too.
  text = lines_file(folder / "text.jsonl", {"text": "Lima is a city. " * 40, "question": ""})
  templates = folder / "templates"
  templates.mkdir()
  (templates / "templates.yaml").write_text(TEMPLATES)
  return {
    "model.name": str(shutil.copytree(tiny, folder / "model")),
    "model.encoder": str(encoder),
    "model.cache": "int8",
    "model.remat": "full",
    "model.sizes": {"width": 8},
    "model.encoder_sizes": {"width": 8},
    "data.train": str(copied),
    "data.validation": str(shutil.copy(files["validation"], folder / "other.jsonl")),
    "data.test": str(files["train"]),
    "data.fields": ["question=question"],
    "data.templates": str(templates),
    "data.timeout": 60.0,
    "data.encoder_length": 64,
    "data.temperature": 3.0,
    "data.cap": 1,
    "data.held_out": [str(lines_file(folder / "held_out.jsonl", QUESTIONS[0]))],
    "train.log_every": 3,
    "train.checkpoint_every": 1,
    "train.on_nonfinite": "skip",
    "train.max_skipped": 2,
    "evaluate.max_new_tokens": 4,
    "evaluate.num_beams": 2,
    "evaluate.batch_size": 2,
    "evaluate.max_examples": 1,
    "evaluate.normalisation": "bytes",
    "evaluate.general_text": str(text),
  }


# Of a data set that the run does not have.
TEMPLATES = """\
dataset: another
templates:
  00000000-0000-0000-0000-000000000000: !Template
    jinja: "{{question}} ||| {{answer}}"
    name: plain
    metadata: !TemplateMetadata
      original_task: true
"""


def fields_of_the_run(config):
  """(dotted key, another value, whether that makes it another run) of every field of its stage."""
  (stage,) = resolve_run(config).stages
  before = stage.dependencies()
  for name, section in before.items():
    for key, field, value in fields_of(section, name) if dataclasses.is_dataclass(section) else ():
      for other in values_to_try(field, value):
        with contextlib.suppress(UserError):
          (stage,) = resolve_run(with_value(config, key, other)).stages
          yield key, other, bool(changed(stage.dependencies(), record(before)))
          break


# Fields that count although another value trains the same here, or cannot be had: three steps on
# short rows of no data set, of a prompt alone, do not come to what they say.
OUT_OF_REACH = {
  "data.datasets",
  "data.lengths",
  "data.sampling",
  "model.quantize",
  "prompt.per_task",
  "prompt.text",
  "train.max_loss",
  "train.patience",
  "train.validate_every",
  "train.validate_examples",
  "train.weight_decay",
}


@pytest.mark.program
def test_what_counts_changes_bits(trained, config, train_stages, tmp_path):
  """A field that trained numbers never depend on would refuse a resume for nothing."""
  same = set()
  for number, (key, value, counts) in enumerate(fields_of_the_run(config)):
    if counts and key not in OUT_OF_REACH:
      train_stages(with_value(config, key, value), tmp_path / str(number))
      if arrays(tmp_path / str(number)) == arrays(trained):
        same.add(key)
  assert not same


def test_what_does_not_affect_the_result_changes_no_bit(
  trained, config, train_stages, tiny, encoder, files, tmp_path
):
  """All such fields at once."""
  values = other_values(tiny, encoder, files, tmp_path)
  free = {key for key, _, counts in fields_of_the_run(config) if not counts}
  evaluate = {f"evaluate.{field.name}" for field in dataclasses.fields(SECTIONS["evaluate"])}
  assert free | evaluate == values.keys() | {"evaluate.skills"}, "which names later stages"
  changed_config = config
  for key, value in values.items():
    changed_config = with_value(changed_config, key, value)
  train_stages(changed_config, tmp_path / "run")
  assert arrays(tmp_path / "run") == arrays(trained)


@pytest.mark.parametrize(
  "method, part, decayed", [("prefix_tuning", "prefix", False), ("lora", "lora", True)]
)
def test_weight_decay_leaves_tuned_keys_and_values_alone(
  config, train_stages, tmp_path, method, part, decayed
):
  config = with_value(config, "stages.prompt.method", method)
  config = with_value(config, f"train.learning_rate.{part}", 0.05)
  config = with_value(config, "train.warmup_steps", 1)
  for decay in (0.0, 0.5):
    train_stages(with_value(config, "train.weight_decay", decay), tmp_path / str(decay))
  assert (arrays(tmp_path / "0.0") != arrays(tmp_path / "0.5")) == decayed


# --- a later version


@dataclasses.dataclass(frozen=True)
class LaterTrainSettings(TrainSettings):
  """With a field that this version does not have."""

  momentum: float = setting(0.9, "a field of a later version")


@dataclasses.dataclass(frozen=True)
class LaterPromptSettings(PromptSettings):
  """With a field that this version does not have."""

  shared: bool = setting(True, "a field of a later version")


@pytest.fixture
def later_version(monkeypatch):
  for name, kind in (("train", LaterTrainSettings), ("prompt", LaterPromptSettings)):
    monkeypatch.setitem(SECTIONS, name, kind)
    monkeypatch.setitem(settings._ALL_SECTIONS, name, kind)
  monkeypatch.setattr(PromptTuning, "sections", {"prompt": LaterPromptSettings})


def test_a_run_of_this_version_goes_on_in_a_later_one(
  trained, config, train_stages, later_version, tmp_path
):
  workdir = shutil.copytree(trained, tmp_path / "run")
  metrics = (workdir / "metrics.jsonl").read_bytes()
  (workdir / "adapters" / "prompt" / "adapter.safetensors").unlink()
  train_stages(config, workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == metrics, "nothing was trained again"
  assert arrays(workdir) == arrays(trained)


@pytest.mark.parametrize("key, value", [("train.momentum", 0.5), ("prompt.shared", False)])
def test_another_value_of_a_later_field_is_another_run(
  trained, config, train_stages, later_version, tmp_path, key, value
):
  workdir = shutil.copytree(trained, tmp_path / "run")
  with pytest.raises(UserError, match=f"different: {key}"):
    train_stages(with_value(config, key, value), workdir)


# --- what a config leaves out, and what it may not have


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
