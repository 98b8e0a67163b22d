"""The sections of a config about data. Imports no jax."""

import dataclasses
import math
from collections.abc import Sequence

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError

SAMPLING = ("", "proportional", "temperature")
DEFAULT_LENGTHS = (32, 64, 128, 256)


def check_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
  """The lengths as a tuple; UserError unless they rise and are at least 2."""
  lengths = tuple(lengths)
  if not lengths or min(lengths) < 2 or list(lengths) != sorted(set(lengths)):
    raise UserError(
      f"data.lengths is {lengths}; give rising numbers of at least 2, such as (32, 64)"
    )
  return lengths


@dataclasses.dataclass(frozen=True)
class InputSettings:
  """How a question becomes the input of a model."""

  template: str = setting("plain", "plain, chat, or a text with {question} in it")
  lengths: tuple[int, ...] = setting(
    DEFAULT_LENGTHS, "texts are padded to the first of these that holds them"
  )
  encoder_length: int = setting(
    256, "tokens of a text that the text encoder reads; longer texts are truncated"
  )
  datasets: tuple[str, ...] = setting((), "data sets that have prompts of their own, by number")

  def __post_init__(self) -> None:
    check_lengths(self.lengths)


@dataclasses.dataclass(frozen=True)
class MixtureSettings:
  """How often each data set of a source is drawn from; UserError for values out of range.

  sampling     "": every row is equally likely; "proportional": a data set is drawn from by its
               size; "temperature": by its size to the power of 1 / temperature
  temperature  above 0; 1 is proportional, and the larger it is, the more equal are the data sets
  cap          larger sizes count as this; 0: no cap (T0 has 500,000 rows for each data set)
  """

  # Without `choices`: its message names the key of the config.
  sampling: str = setting(
    "", "of several data sets: '' all rows alike, proportional or temperature"
  )
  temperature: float = setting(2.0, "sizes of data sets count to the power of 1 / temperature")
  cap: int = setting(0, "sizes above it count as it; 0: none")

  def __post_init__(self) -> None:
    if self.sampling not in SAMPLING:
      raise UserError(
        f"data.sampling {self.sampling!r} is unknown; give '' (all rows alike), proportional or"
        " temperature"
      )
    if not (math.isfinite(self.temperature) and self.temperature > 0):
      raise UserError(f"data.temperature is {self.temperature}; give a number above 0, such as 2")
    if self.cap < 0 or self.cap != int(self.cap):
      raise UserError(f"data.cap is {self.cap}; give a number of rows, or 0 for none")


@dataclasses.dataclass(frozen=True)
class DataSettings(InputSettings, MixtureSettings):
  """Where examples come from, and how they become texts.

  The names of data do not affect a result, since a path may change: what is trained depends on the
  contents, which `Source.digest` identifies, `fields` and `templates` included.
  """

  train: str = setting(
    "world_facts/train",
    "tfds:NAME/SPLIT, hf:NAME/SPLIT, the path of a file of rows, or a built-in name",
    affects_result=False,
  )
  validation: str = setting("world_facts/validation", "likewise", affects_result=False)
  test: str = setting("world_facts/test", "likewise", affects_result=False)
  fields: tuple[str, ...] = setting(
    (), "a source's own field names: question=query, ...", affects_result=False
  )
  templates: str = setting(
    "", "a file or folder of jinja templates, as promptsource writes them", affects_result=False
  )
  held_out: tuple[str, ...] = setting(
    (), "data that is scored and never trained on", affects_result=False
  )

  def __post_init__(self) -> None:
    InputSettings.__post_init__(self)
    MixtureSettings.__post_init__(self)

  @property
  def mixture(self) -> MixtureSettings:
    """How the data sets of the training data are mixed."""
    return MixtureSettings(self.sampling, self.temperature, self.cap)
