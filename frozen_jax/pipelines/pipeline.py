"""The protocol of a pipeline: what the driver of a run calls, whichever pipelines there are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from frozen_jax.core.object_store import AnyPath
from frozen_jax.data.examples import Example
from frozen_jax.evaluation.scores import Scores
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.artifacts import Artifacts
from frozen_jax.pipelines.experiment import RunSettings, StageSettings, TrainedStage, TrainStage
from frozen_jax.training.metrics import MetricsWriter


@runtime_checkable
class Pipeline(Protocol):
  """What runs before and around the stages of one workdir."""

  settings: type  # the section of a config that asks for the pipeline
  steps: tuple[str, ...]  # after which of its steps `stop_after` can end a run
  stage_fields: tuple[str, ...]  # of its settings: those that a stage can have of its own
  scoring_fields: tuple[str, ...]  # of its settings: those that nothing but the table depends on
  has_samples: bool  # whether pass one gives several answers, whose agreement is a confidence
  artifacts: Artifacts  # what it has made

  @classmethod
  def check(cls, run: RunSettings, lm: Any, training: bool = True) -> None:
    """Raises UserError for what cannot be, as far as config, data and small files tell.

    lm: a `models.outline.ModelOutline`; this comes before any weight is read. training: whether the
    run is to train, or what it trained is evaluated.
    """
    ...

  @classmethod
  def check_questions(cls, run: RunSettings, lm: Any, examples: Sequence[Example]) -> list[Example]:
    """Questions at prediction time as the last stage reads them, less what takes a weight.

    lm: as in `check`. Raises UserError for what is no question or cannot be read as one.
    """
    ...

  @classmethod
  def dependencies(cls, run: RunSettings) -> dict[str, Callable[[], str]]:
    """{config key: what reads the digest} of the files and models that it reads under that key,
    besides the data of the stages.

    The digest is of contents, not of a path; what reads it raises UserError where it cannot.
    """
    ...

  def __init__(self, run: RunSettings, lm: Any, workdir: AnyPath):
    """Opens what it works on. Raises UserError for what cannot be read."""
    ...

  def prepare(self, run: RunSettings, writer: MetricsWriter) -> RunSettings:
    """Makes what is needed before the first stage and is not there yet, up to `run.stop_after`.

    run: as the pipelines before this one have left it. Returns it with the stages that read what
    was made.
    """
    ...

  def stage(
    self, settings: StageSettings, trained: Mapping[str, TrainedStage], train: TrainStage
  ) -> StageSettings:
    """The settings of a stage that is about to be trained, on the data that it is to read."""
    ...

  def evaluated(self, settings: StageSettings, model: TunedModel) -> StageSettings:
    """The settings under which a model that was loaded is scored on the config's `data.test`."""
    ...

  def compared_stages(self, models: Mapping[str, "ScoredModel"]) -> list[str]:
    """Those of the stages' models that get a row of the table, whose last one's data the
    baselines are scored on too.
    """
    ...

  def scores(
    self, scores: Mapping[str, Scores], models: Mapping[str, "ScoredModel"]
  ) -> dict[str, Scores]:
    """The rows of the table so far with the pipeline's own, the last stage's last.

    models: of every row and stage by name, with the settings that they are scored under.
    """
    ...

  def first_pass_questions(self, split: str, max_questions: int) -> list[Example] | None:
    """The questions of a split as pass one of a cascade reads them; None: as the stage's data."""
    ...

  def inputs(self, examples: Sequence[Example]) -> list[Example]:
    """Questions at prediction time as the last stage reads them."""
    ...

  def report(self) -> dict[str, Any]:
    """What results.json holds of it."""
    ...

  def lines(self, report: Mapping[str, Any]) -> list[str]:
    """The report as text for the terminal."""
    ...


ScoredModel = tuple[StageSettings, TunedModel]


def with_same_test_data(models: Mapping[str, ScoredModel]) -> list[str]:
  """The names of those that are scored on the same data, with the same answers, as the last one."""
  of = {name: settings.data for name, (settings, _) in models.items()}
  tests = {name: (data.test, data.fields, data.templates) for name, data in of.items()}
  return [name for name, test in tests.items() if test == [*tests.values()][-1]]
