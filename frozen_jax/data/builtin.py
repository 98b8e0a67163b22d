"""The table of built-in data sets: their splits, and the modules that build them.

Imports neither jax nor tensorflow-datasets: a builder's module is imported when the data set is
opened (`builders/prepare.py`).
"""

from typing import NamedTuple


class Builtin(NamedTuple):
  """A built-in data set: its splits, and its tensorflow-datasets builder.

  apart: splits that hold what no other split does, so that each counts as a data set of its own
  """

  splits: tuple[str, ...]
  module: str  # of frozen_jax.data.builders
  builder: str  # the class
  apart: tuple[str, ...] = ()


BUILTIN_DATASETS = {
  "world_facts": Builtin(("train", "validation", "test"), "world_facts", "WorldFacts"),
  "plain_english": Builtin(("train", "validation"), "plain_english", "PlainEnglish"),
  "many_tasks": Builtin(("train", "validation", "test", "held_out"), "many_tasks", "ManyTasks"),
  "chains": Builtin(("train", "validation", "test", "longer"), "chains", "Chains", ("longer",)),
}

BUILTIN_SPECS = tuple(
  f"{name}/{split}" for name, one in BUILTIN_DATASETS.items() for split in one.splits
)
SPECS_APART = tuple(
  f"{name}/{split}" for name, one in BUILTIN_DATASETS.items() for split in one.apart
)
