"""The sections of a config about data. Imports no jax."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError
from frozen_jax.text.templates import make_template

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
class InputSettings(Section):
  """How a question becomes the input of a model."""

  section: ClassVar[str] = "data"

  template: str = setting("plain", "plain, chat, or a text with {question} in it")
  lengths: tuple[int, ...] = setting(
    DEFAULT_LENGTHS, "texts are padded to the first of these that holds them", at_least=2
  )
  encoder_length: int = setting(
    256, "tokens of a text that the text encoder reads; longer texts are truncated", at_least=2
  )
  datasets: tuple[str, ...] = setting((), "data sets that have prompts of their own, by number")

  def __post_init__(self) -> None:
    super().__post_init__()
    check_lengths(self.lengths)
    make_template(self.template)


@dataclasses.dataclass(frozen=True)
class MixtureSettings(Section):
  """How often each data set of a source is drawn from; UserError for values out of range.

  sampling     "": every row is equally likely; "proportional": a data set is drawn from by its
               size; "temperature": by its size to the power of 1 / temperature
  temperature  above 0; 1 is proportional, and the larger it is, the more equal are the data sets
  cap          larger sizes count as this; 0: no cap (T0 has 500,000 rows for each data set)
  """

  section: ClassVar[str] = "data"

  sampling: str = setting("", "of several data sets; '': all rows alike", choices=SAMPLING)
  temperature: float = setting(
    2.0, "sizes of data sets count to the power of 1 / temperature", above=0
  )
  cap: int = setting(0, "sizes above it count as it; 0: none", at_least=0)


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
    nonempty=True,
  )
  validation: str = setting(
    "world_facts/validation", "likewise", affects_result=False, nonempty=True
  )
  test: str = setting("world_facts/test", "likewise", affects_result=False, nonempty=True)
  fields: tuple[str, ...] = setting(
    (),
    "a source's own field names: question=query, ...",
    affects_result=False,
    pattern=("[^=]+=[^=]+", "ours=theirs, as question=query"),
  )
  templates: str = setting(
    "", "a file or folder of jinja templates, as promptsource writes them", affects_result=False
  )
  timeout: float = setting(
    600.0,
    "seconds without a batch or a row after which the source is named, twice that and it ends; 0:"
    " never",
    affects_result=False,
    at_least=0,
  )
  held_out: tuple[str, ...] = setting(
    (), "data that is scored and never trained on", affects_result=False
  )

  def as_trained_on(self, reads_encoder: bool) -> "DataSettings":
    """With the defaults of what training does not read under these settings.

    reads_encoder: whether the method's input is also a text encoder's.
    """
    unread = [] if reads_encoder else ["encoder_length"]
    if self.sampling != "temperature":
      unread.append("temperature")
    if not self.sampling:
      unread.append("cap")
    fields = {field.name: field.default for field in dataclasses.fields(self)}
    return dataclasses.replace(self, **{name: fields[name] for name in unread})

  @property
  def mixture(self) -> MixtureSettings:
    """How the data sets of the training data are mixed."""
    return MixtureSettings(self.sampling, self.temperature, self.cap)
