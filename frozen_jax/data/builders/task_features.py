"""The features of prepared multi-task rows, for tensorflow-datasets."""

import tensorflow_datasets as tfds

from frozen_jax.data.examples import Example

_TEXTS = ("id", "dataset", "template", "input", "target")
_LISTS = ("choices", "answers")


def task_features() -> tfds.features.FeaturesDict:
  """The features of every multi-task row; `template`, `choices` and `answers` may be empty."""
  text = tfds.features.Text
  lists = {key: tfds.features.Sequence(text()) for key in _LISTS}
  return tfds.features.FeaturesDict({key: text() for key in _TEXTS} | lists)


def feature_values(example: Example) -> Example:
  """An example with exactly the features of a row."""
  lists = {key: example.get(key, []) for key in _LISTS}
  return {key: example.get(key, "") for key in _TEXTS} | lists
