"""How many rows an epoch has: those that are trained on, of a mixture each part up to a cap."""

from fractions import Fraction

import pytest

from frozen_jax.data.batches import training_batches
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.data.tasks import LanguageModelTask, QuestionTask
from frozen_jax.training.settings import TrainSettings


class Rows(list):
  """Examples of data sets "a", "b", ..., as a source has them."""

  name = "rows"

  @property
  def dataset_index(self):
    import numpy as np

    return np.array([ord(row["dataset"]) - ord("a") for row in self])


def rows(**counts):
  """So many short rows of each data set; of an upper-case one, rows that are too long."""
  made = Rows()
  for name, count in counts.items():
    text = "red " * (40 if name.isupper() else 1)
    made += [{"dataset": name.lower(), "input": text, "target": "blue"}] * count
  return made


def epoch_rows(source, task, mixture=None):
  return training_batches(source, task, 2, mixture=mixture).epoch_rows()


@pytest.fixture
def task(words):
  return QuestionTask(words, "{question}", lengths=(8, 16))


@pytest.mark.parametrize(
  "counts, mixture, expected",
  [
    ({"a": 5}, None, 5),
    ({"a": 5, "A": 2}, None, 5),
    ({"a": 9, "b": 3}, None, 12),
    ({"a": 9, "b": 3}, MixtureSettings("proportional"), 12),
    ({"a": 9, "b": 3}, MixtureSettings("temperature", 2.0), 12),
    ({"a": 9, "b": 3}, MixtureSettings("proportional", cap=4), 7),
    ({"a": 9, "b": 3, "B": 5, "c": 4}, MixtureSettings("proportional", cap=4), 11),
    ({"a": 9, "b": 3}, MixtureSettings(cap=4), 12),
  ],
)
def test_rows_of_an_epoch(task, counts, mixture, expected):
  assert epoch_rows(rows(**counts), task, mixture) == expected


def test_a_capped_mixture_draws_each_data_set_as_often_as_it_counts(task, words):
  source, mixture = rows(a=90, b=3), MixtureSettings("proportional", cap=9)
  for row in source[:90]:
    row["target"] = "blue"
  source[90:] = [{"dataset": "b", "input": "red", "target": "green"}] * 3
  batches = training_batches(source, task, 1, mixture=mixture)
  count = batches.epoch_rows()
  assert count == 12
  green = words.convert_tokens_to_ids("green")
  drawn = [bool((next(batches)["tokens"] == green).any()) for _ in range(count)]
  assert sum(drawn) == 3


def test_rows_that_are_too_long_are_counted_once_all_the_same(task):
  batches = training_batches(rows(a=3, A=1), task, 2)
  assert batches.epoch_rows() == 3
  for _ in range(8):
    next(batches)
  assert batches.counts["skipped"] == 1


def test_of_plain_text_they_are_windows(words):
  task = LanguageModelTask(words, (4,))
  assert epoch_rows([{"text": "red blue green red"}] * 3, task) == 4  # 15 tokens


@pytest.mark.parametrize("epochs", [0.1, 0.5, 1.0, 1.1, 2.0, 3.7])
@pytest.mark.parametrize("batch_size, accumulate", [(1, 1), (8, 1), (8, 4), (30, 2)])
@pytest.mark.parametrize("count", [0, 1, 7, 30, 210])
def test_the_fewest_steps_that_draw_so_many_rows(epochs, batch_size, accumulate, count):
  settings = TrainSettings(
    steps=0, epochs=epochs, batch_size=batch_size, accumulate=accumulate
  ).for_rows(count)
  wanted = Fraction(str(epochs)) * max(count, 1)
  assert settings.steps >= 1 and settings.epochs == 0 and settings.trains
  assert (settings.steps - 1) * batch_size < wanted <= settings.steps * batch_size


def test_steps_stay_as_they_are():
  assert TrainSettings(steps=7).for_rows(3) == TrainSettings(steps=7)
  assert not TrainSettings(steps=0).trains
