"""The config that every experiment starts from. Imports no jax: a config is built before that.

The sections are those of their owners, with their defaults. A section that a method alone reads
(`lora`, `generator`, ...) need not be in an experiment's file: its defaults are added when the
config is resolved (`run.settings`).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from frozen_jax.config.presets import as_config
from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.data.settings import DataSettings
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.models.settings import ModelSettings
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.pipelines.cascade.settings import CascadeSettings
from frozen_jax.sharding.settings import MeshSettings
from frozen_jax.training.settings import TrainSettings

SECTIONS: dict[str, type] = {
  "model": ModelSettings,
  "mesh": MeshSettings,
  "data": DataSettings,
  "prompt": PromptSettings,
  "train": TrainSettings,
  "evaluate": EvaluateSettings,
  "cascade": CascadeSettings,
}

# What writes each: run.export.FORMATS.
EXPORT_FORMATS = (
  *("adapter", "peft", "merged", "gguf_lora", "prompt_embeds", "orbax", "stablehlo"),
  "cross_encoder",
)
_NAME = (r"(\w[\w.-]*)?", "a name of letters, digits, '.', '-' and '_', the first no '.' or '-'")
_REPOSITORY = (r"(\w[\w.-]*/\w[\w.-]*)?", "owner/name")

# Keys of the run as a whole that are in no section, as fields of one.
RUN_KEYS: dict[str, dataclasses.Field] = {
  "seed": setting(0, "of everything random: any whole number"),
  "seeds": setting(
    (), "in place of one, as 0,1,2: each is run in WORKDIR/seed_N, and their tables are joined"
  ),
  "init_from": setting(
    "",
    "a workdir, an exported adapter, a PEFT folder, hf:owner/name or a .npy prompt, to start from",
  ),
  "stage_order": setting(
    (), "the stages that run, in this order; each is an entry of `stages`", nonempty=True
  ),
  "baseline": setting("zero_shot", "the row of the table that results.json calls the baseline"),
  "gains": setting(
    (), "what the last lines state, each as 'the second pass: second_pass over control', two rows"
  ),
  "stop_after": setting(
    "", "a step of a pipeline after which the run ends (reader: retrieve, ...)"
  ),
  "disable_most_optimizations": setting(
    False,
    "compile in a third of the time, to slower code, as JAX's flag of that name: for short runs",
  ),
  "tensorboard": setting(False, "write the curves for TensorBoard too"),
  "predict.input": setting(
    "-", "questions to answer: a file, or - for standard input", nonempty=True
  ),
  "export.folder": setting("", "where an export is written; default WORKDIR/export"),
  "export.format": setting("adapter", "of an export", choices=EXPORT_FORMATS),
  "export.push": setting(
    "",
    "owner/name on the Hugging Face hub, to which an export is uploaded too",
    pattern=_REPOSITORY,
  ),
  "evaluation": setting(
    "", "name of an evaluation, WORKDIR/evaluations/NAME; default: from data.test", pattern=_NAME
  ),
}


def several_seeds(given: Sequence[Any]) -> tuple[int, ...]:
  """`config.seeds` as numbers; UserError for what is none, for one seed, and for one twice."""
  for one in given:
    if isinstance(one, bool) or not re.fullmatch(r"-?\d+", str(one), re.ASCII):
      raise UserError(f"config.seeds holds {one!r}; write whole numbers, as 0,1,2")
  seeds = tuple(int(one) for one in given)
  if len(seeds) == 1:
    raise UserError(
      f"config.seeds is {seeds[0]} alone; give several seeds, as 0,1,2, or --config.seed={seeds[0]}"
      " for one run"
    )
  if len(set(seeds)) < len(seeds):
    raise UserError(f"config.seeds has a seed twice: {', '.join(map(str, seeds))}; give each once")
  return seeds


def defaults() -> ConfigDict:
  """A fresh config; an experiment's file changes what is its own.

  An empty text means "none" throughout (the command line cannot tell None from 'None'), and lists
  are tuples (the command line can replace those). A stage is the config with its entry of `stages`
  laid over it.
  """
  config = ConfigDict()
  for key, field in RUN_KEYS.items():
    section, _, name = key.rpartition(".")
    if section and section not in config:
      config[section] = ConfigDict()
    (config[section] if section else config)[name] = field.default
  for name, kind in SECTIONS.items():
    config[name] = as_config(kind())
  config.stages = ConfigDict()
  return config
