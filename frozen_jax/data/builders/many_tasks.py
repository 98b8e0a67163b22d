"""The data set `many_tasks`: 28 small tasks, each in three phrasings, six of them held out.

Facts about countries (those of `world_facts`, by its splits), arithmetic, dates, strings and
sorting, some with choices and some free; seeded generators (`task_generators.py`) give the rows and
prompt templates (`many_tasks.yaml`) the texts. Four splits: `train`, `validation` and `test` hold
the same tasks with other rows, and `held_out` holds whole tasks that are not in `train`. `train`
names no country of the other splits.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from frozen_jax.core.json_row import Row
from frozen_jax.data.builders.task_features import feature_values, task_features
from frozen_jax.data.builders.task_generators import (
  DRAWN,
  OF_COUNTRIES,
  country_rows,
  drawn_rows,
)
from frozen_jax.data.builtin import BUILTIN_DATASETS
from frozen_jax.data.examples import Example, rendered_example
from frozen_jax.text.jinja_templates import load_templates

HELD_OUT = (
  "continent",
  "largest_number",
  "odd_one_out",
  "opposite",
  "last_letter",
  "next_month",
)
SPLITS = BUILTIN_DATASETS["many_tasks"].splits
_ROWS = {"train": 90, "validation": 12, "test": 24}  # of each random task, in this order
_HELD_OUT_ROWS = 40
_TEMPLATES_PER_ROW = 2  # in rotation; held-out tasks use all


class ManyTasks(tfds.core.GeneratorBasedBuilder):
  """Rows of tasks, with the features of `task_rows`; an id is "TASK/NUMBER/TEMPLATE"."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, description=__doc__, features=task_features())

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, Example]]:
    for example in examples(split):
      yield example["id"], feature_values(example)


def tasks(split: str) -> tuple[str, ...]:
  """The tasks of a split."""
  held_out = split == "held_out"
  return tuple(task for task in (*OF_COUNTRIES, *DRAWN) if (task in HELD_OUT) == held_out)


def examples(split: str) -> Iterator[Example]:
  """Every example of a split, task by task."""
  templates = load_templates(pathlib.Path(__file__).with_suffix(".yaml"))
  for task in tasks(split):
    task_templates = templates[task]
    for number, (key, row) in enumerate(_rows(task, split)):
      count = len(task_templates) if split == "held_out" else _TEMPLATES_PER_ROW
      for step in range(count):
        template = task_templates[(number + step) % len(task_templates)]
        rendered = template.render(row, f"{task}, row {key}", key)
        assert rendered is not None, f"{template} gives nothing for {row}"
        example = rendered_example(rendered, task, template.name)
        yield example | {"id": f"{task}/{key}/{template.name}"}


def _rows(task: str, split: str) -> list[tuple[Any, Row]]:
  """The rows of a task in a split, each with a number or code that is unique in the task."""
  if task in OF_COUNTRIES:
    return list(country_rows(task, ("validation", "test") if split == "held_out" else (split,)))
  if split == "held_out":
    return list(enumerate(drawn_rows(task, _HELD_OUT_ROWS)))
  start = 0
  for name, count in _ROWS.items():
    if name == split:
      return list(enumerate(drawn_rows(task, sum(_ROWS.values()))))[start : start + count]
    start += count
  raise ValueError(split)
