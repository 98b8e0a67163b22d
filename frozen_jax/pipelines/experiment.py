"""A run and its stages as typed settings, and what becomes of a stage: a tuned model.

`run.settings` makes these of a config.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from frozen_jax.core.types import Tree
from frozen_jax.data.settings import DataSettings, InputSettings
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.evaluation.gains import Gain
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.methods import METHODS
from frozen_jax.models.inputs import datasets_of
from frozen_jax.models.settings import ModelSettings
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.pipelines.cascade.settings import CascadeSettings
from frozen_jax.sharding.settings import MeshSettings
from frozen_jax.training.result import TrainingResult
from frozen_jax.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class StageSettings:
  """One stage: the run's sections with the stage's own entry laid over them.

  method         its name in `methods.METHODS`
  sections       the sections that the method reads, by name
  pipelines      the sections of the run's pipelines, by name
  init_from      part of the trained tree -> "stage/part" from which it starts
  frozen_inputs  name -> "stage/part" that the method reads and does not train
  """

  name: str
  method: str
  seed: int
  model: ModelSettings
  data: DataSettings
  prompt: PromptSettings
  train: TrainSettings
  evaluate: EvaluateSettings
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pipelines: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  init_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
  frozen_inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def with_data(self, **values: Any) -> "StageSettings":
    """The same stage on other data; values: fields of `DataSettings`."""
    return dataclasses.replace(self, data=dataclasses.replace(self.data, **values))

  @property
  def reads_encoder(self) -> bool:
    """Whether its method has an input from a text encoder."""
    return METHODS[self.method].reads_encoder

  def dependencies(self) -> dict[str, Any]:
    """What its training depends on, besides the contents of data, models and earlier stages.

    Paths are not among it, nor how it is evaluated, spread over devices or logged.
    """
    return {
      "method": self.method,
      "seed": self.seed,
      "model": self.model.as_trained_on(),
      "data": self.data.as_trained_on(self.reads_encoder),
      "train": self.train,
      **self.sections,
    }

  def tuned_model(
    self, lm: Any, trained: Tree | None = None, frozen_inputs: Tree | None = None
  ) -> TunedModel:
    """The stage's method on the frozen LM, as it starts or with these trees.

    Raises UserError for settings that the method cannot have.
    """
    data = self.data
    if self.prompt.per_task and not data.datasets:
      data = dataclasses.replace(data, datasets=datasets_of(data))
    method = METHODS[self.method].build(
      lm, self.sections, remat=self.model.remat, datasets=data.datasets
    )
    return TunedModel(
      lm,
      method,
      {} if trained is None else trained,
      frozen_inputs or {},
      inputs=subsection(data, InputSettings),
      generation=subsection(self.evaluate, GenerationSettings),
      sections=self.sections,
      remat=self.model.remat,
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """A run: its stages in the order in which they train, and what is the run's as a whole.

  values: the resolved config as plain values, for config.json.
  """

  values: Mapping[str, Any]
  stages: tuple[StageSettings, ...]
  seed: int
  seeds: tuple[int, ...]
  init_from: str
  baseline: str
  gains: tuple[Gain, ...]
  stop_after: str
  disable_most_optimizations: bool
  tensorboard: bool
  model: ModelSettings
  mesh: MeshSettings
  data: DataSettings
  prompt: PromptSettings
  train: TrainSettings
  evaluate: EvaluateSettings
  cascade: CascadeSettings
  pipelines: Mapping[str, Any]

  def stage(self, name: str) -> StageSettings:
    """The stage of that name."""
    return next(stage for stage in self.stages if stage.name == name)

  @property
  def rows(self) -> int:
    """Into how many parts the rows of every stage's batches, or microbatches, can be split."""
    return math.gcd(*(one.train.batch_size // one.train.accumulate for one in self.running))

  @property
  def running(self) -> tuple[StageSettings, ...]:
    """The stages that train at least one step."""
    return tuple(stage for stage in self.stages if stage.train.trains)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedStage:
  """A stage that has been trained: its settings, its model, how it went and what was skipped.

  epoch_rows: the rows of an epoch, where the settings give epochs; else 0.
  """

  settings: StageSettings
  model: TunedModel
  result: TrainingResult
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  epoch_rows: int = 0


TrainStage = Callable[[StageSettings], TrainedStage]


def subsection(section: Any, kind: type) -> Any:
  """A section of one of the kinds that this one is made of, with the same values."""
  names = [field.name for field in dataclasses.fields(kind)]
  return kind(**{name: getattr(section, name) for name in names})
