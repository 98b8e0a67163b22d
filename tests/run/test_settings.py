"""Settings: what a stage depends on, and what it does not."""

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
from frozen_jax.run.defaults import SECTIONS
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
    "train.max_rollbacks": 2,
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
  "prompt.cache_states",
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
