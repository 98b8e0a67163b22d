"""The data set `world_facts`: closed-book questions about the countries in package countryinfo.

A tensorflow-datasets builder; it needs no TensorFlow and no network. Splits share no country.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from frozen_jax.data.builders.countries import SPLITS
from frozen_jax.data.builders.questions import first_hop_of, kind_of, questions
from frozen_jax.data.examples import Derived, Example


class WorldFacts(tfds.core.GeneratorBasedBuilder):
  """Questions with their accepted answers, the usual one first: {"id", "question", "answers"}."""

  VERSION = tfds.core.Version("1.0.0")
  derived: ClassVar[Derived] = {"kind": kind_of, "first_hop": first_hop_of}

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage="https://pypi.org/project/countryinfo/",
      features=tfds.features.FeaturesDict(
        {"id": text(), "question": text(), "answers": tfds.features.Sequence(text())}
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[Any, Example]]:
    for example in questions(split):
      yield example["id"], example
