"""Where a stage's small trees come from: stages before it, the run's `init_from`, or nowhere.

A trained part starts as another one, and a frozen input is read, only where both act on the LM at
the same position (`Method.part_positions`): a prompt at the input means something else within the
stack.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from frozen_jax.core.errors import UserError
from frozen_jax.core.paths import flatten
from frozen_jax.core.types import Method, Tree
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.pipelines.experiment import StageSettings, TrainedStage
from frozen_jax.pipelines.load_adapter import load_adapter
from frozen_jax.run.early_checks import check_position, check_start, missing_input

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class InitialParts:
  """The small trees of the run's `init_from`, by name, and where each acts on the LM."""

  trees: Tree = dataclasses.field(default_factory=dict)
  positions: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def of(self, method: Method) -> Tree:
    """Those that act where the method's own part of the name does."""
    return {name: tree for name, tree in self.trees.items() if self._fits(name, name, method)}

  def first(self, names: Sequence[str], part: str, method: Method) -> Tree | None:
    """The first of these that acts where that part of the method does, or None."""
    fitting = (self.trees[name] for name in names if self._fits(name, part, method))
    return next(fitting, None)

  def _fits(self, name: str, part: str, method: Method) -> bool:
    return name in self.trees and self.positions.get(name) == method.part_positions.get(part)


def load_initial_parts(
  init_from: str, lm: FrozenLM, stages: Sequence[StageSettings]
) -> InitialParts:
  """The small trees of `init_from`; the trained ones go before the frozen inputs.

  Raises UserError where they compute something else under the settings of a stage, and where no
  stage has a use for any.
  """
  if not init_from:
    return InitialParts()
  model = load_adapter(init_from, lm)
  trees = {**model.frozen_inputs, **model.trained}
  initial = InitialParts(trees, dict(model.method.part_positions))
  is_used = not stages
  for stage in stages:
    check_start(stage, model.sections, f"what {init_from} holds")
    method = stage.tuned_model(lm).method
    _say_what_does_not_fit(stage, method, initial)
    is_used |= _is_used(stage, method, initial)
  if not is_used:
    methods = ", ".join(f"{stage.name}: {stage.method}" for stage in stages)
    raise UserError(
      f"config.init_from={init_from} holds {', '.join(trees)} of {model.method.name}, from which no"
      f" stage of this run starts ({methods}); train that method, or leave config.init_from out"
    )
  return initial


def _is_used(stage: StageSettings, method: Method, initial: InitialParts) -> bool:
  """Whether a stage starts from one of the parts, or reads one."""
  if method.learning_rates.keys() & initial.of(method).keys():
    return True
  links = ((name, link.partition("/")[2]) for name, link in stage.frozen_inputs.items())
  return any(initial.first((name, part), name, method) is not None for name, part in links)


def _say_what_does_not_fit(stage: StageSettings, method: Method, initial: InitialParts) -> None:
  """A line for each part of the stage that has the name of one given and acts elsewhere."""
  for part in method.learning_rates.keys() & initial.trees.keys() - initial.of(method).keys():
    given, own = (one.get(part, "elsewhere") for one in (initial.positions, method.part_positions))
    _LOG.info(
      "stage %s: %s does not start from config.init_from, where it acts %s, and here %s",
      *(stage.name, part, given, own),
    )


def given_parts(
  stage: StageSettings,
  method: Method,
  trained: Mapping[str, TrainedStage],
  initial: InitialParts,
) -> Tree:
  """From what a stage's parts start, by name: what `stage.init_from` names, else `initial`."""
  return {**initial.of(method), **_linked(stage, stage.init_from, method, trained, initial)}


def frozen_inputs(
  stage: StageSettings,
  method: Method,
  trained: Mapping[str, TrainedStage],
  initial: InitialParts,
) -> Tree:
  """The small trees that the stage reads and does not train; UserError where one is missing."""
  found = _linked(stage, stage.frozen_inputs, method, trained, initial)
  missing = stage.frozen_inputs.keys() - found.keys()
  if missing:
    raise missing_input(stage, list(missing))
  return found


def _linked(
  stage: StageSettings,
  links: Mapping[str, str],
  method: Method,
  trained: Mapping[str, TrainedStage],
  initial: InitialParts,
) -> Tree:
  """{key: "stage/part"} -> {key: that part of what the stage trained}.

  Of a stage that did not run the part comes from `initial`, if that has it.
  """
  parts = {}
  for key, link in links.items():
    source, _, part = link.partition("/")
    if source in trained:
      model = trained[source].model
      if part not in model.trained:
        trains = ", ".join(model.trained)
        raise UserError(f"{key}={link}: stage {source} trains {trains}, not {part!r}")
      check_position(stage.name, key, link, method, model.method)
      parts[key] = model.trained[part]
    else:
      tree = initial.first((key, part), key, method)
      parts |= {} if tree is None else {key: tree}
  return parts


def started(fresh: Tree, given: Tree, name: str) -> Tree:
  """The fresh tree of stage `name` with its given parts in place.

  Raises UserError where shapes do not agree.
  """
  start = {**fresh, **{key: given[key] for key in fresh if key in given}}
  made, has = (
    {path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (fresh, start)
  )
  differing = sorted(path for path in {*made, *has} if made.get(path) != has.get(path))
  if differing:
    raise UserError(
      f"stage {name} cannot start from what is given: its arrays are not those that the settings of"
      f" the stage make (different: {', '.join(differing[:3])}); give the settings that trained it"
    )
  return start
