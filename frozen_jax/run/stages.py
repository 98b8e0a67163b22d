"""One stage of a run: its method, its data, its training, and what it hands to later stages."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Method, Tree
from frozen_jax.data.batches import scoring_batches, training_batches
from frozen_jax.data.encoded_batches import EncodedBatches, TextStates
from frozen_jax.data.examples import Example
from frozen_jax.data.mixture import MixtureOptions
from frozen_jax.data.sources import Source, open_source
from frozen_jax.data.tasks import EncoderSide, QuestionTask, Task, make_task
from frozen_jax.evaluation.likelihood import score
from frozen_jax.methods import METHODS
from frozen_jax.run import options as experiment
from frozen_jax.run.encoder_states import text_states
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.sharding.hosts import host_shard, put
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.place import make_place
from frozen_jax.sharding.rules import replicated
from frozen_jax.training.loop import Fit, FitOptions, fit
from frozen_jax.training.metrics import MetricsWriter
from frozen_jax.training.optimizer import OptimizerOptions, make_optimizer

_LOG = logging.getLogger(__name__)

# What of a stage's options its checkpoint does not depend on.
_FREE = (
  *("mesh", "evaluate", "predict", "export", "tensorboard", "baseline", "until"),
  *("reader", "candidates"),  # what they made of the data is in `made_data`
)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
  """A method with its trained and its fixed small trees: what is evaluated and exported."""

  method: Method
  trained: Tree
  fixed: Tree
  options: experiment.Options
  fit: Fit | None = None  # how it was trained, if it was
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # examples cut, skipped

  @property
  def history(self) -> Fit:
    """How it was trained; only for what this run trained."""
    if self.fit is None:
      raise ValueError("this system was loaded, not trained")
    return self.fit

  def frozen(self, lm: FrozenLM) -> Tree:
    """The `frozen` argument of the method's functions."""
    return lm.frozen(self.fixed)


def run_stage(
  name: str,
  options: experiment.Options,
  lm: FrozenLM,
  done: Mapping[str, System],
  initial: Tree,
  workdir: pathlib.Path,
  writer: MetricsWriter,
) -> System:
  """Trains one stage, from its checkpoint where there is one.

  done: the stages before it; initial: small trees of `init_from`, by key. A part of the trained
  tree starts from the stage that `starts` names if that stage ran, else from `initial`, else fresh.
  """
  stage, method = open_stage(name, options, lm)
  train, mesh = stage["train"], make_mesh() if lm.mesh is None else lm.mesh
  init_key, key = jax.random.split(_stage_key(stage["seed"], name))
  given = {**initial, **_taken(stage.get("starts", ()), done, initial, options)}
  trained = _replaced(method.init(init_key), given, name)
  _LOG.info(
    "stage %s: %s, %s trained parameters, %d steps",
    name,
    stage["method"],
    f"{sum(leaf.size for leaf in jax.tree.leaves(trained)):,}",
    train["steps"],
  )
  fixed = _taken(stage.get("fixed", ()), done, initial, options)
  missing = experiment.pairs(stage.get("fixed", ())).keys() - fixed.keys()
  if missing:
    raise UserError(
      f"stage {name} holds {', '.join(missing)} fixed, but the stage that tunes it does not run and"
      f" init_from has none; give one of them, or --config.stages.{name}.fixed='()'"
    )
  frozen = lm.frozen(put(fixed, replicated(mesh)))

  source, task = open_task(stage, stage["data"]["train"], lm, method)
  made = training_batches(
    source, task, train["batch_size"], stage["seed"], host_shard(mesh), mixture(stage["data"])
  )
  states = text_states(method, lm)
  batches = made if states is None else EncodedBatches(made, states)
  rates = {key: train["learning_rate"][key] for key in trained if key in train["learning_rate"]}
  optimizer_options = OptimizerOptions(
    learning_rate=rates,
    **{key: train[key] for key in ("warmup_steps", "final_fraction", "weight_decay", "clip_norm")},
  )
  loop = FitOptions(
    validate_first=True,
    **{key: train[key] for key in ("steps", "accumulate", "log_every", "validate_every")},
    checkpoint_every=train["checkpoint_every"],
    patience=train["patience"],
  )
  result = fit(
    method,
    make_optimizer(optimizer_options, train["steps"]),
    trained,
    frozen,
    batches,
    stage=name,
    options=loop,
    key=key,
    mesh=mesh,
    workdir=workdir,
    writer=writer,
    config=_made_of(stage),
    fingerprint=lm.fingerprints,
    validate=_validator(method, frozen, lm, stage, states),
  )
  counts = {**batches.counts, "left_out": source.left_out}
  return System(method, result.best, fixed, stage, result, counts)


def open_stage(
  name: str, options: experiment.Options, lm: FrozenLM
) -> tuple[experiment.Options, Method]:
  """The options of a stage, with the names of the data sets that it tells apart, and its method."""
  stage = experiment.stage_options(options, name)
  if stage["prompt"]["per_task"]:
    stage["data"]["tasks"] = data_sets(stage)
  return stage, METHODS[stage["method"]](lm, stage)


def open_task(
  stage: experiment.Options, name: str, lm: FrozenLM, method: Method | None = None
) -> tuple[Source, Task]:
  """The examples of the data of that name and their task; texts are no longer than the context.

  `method`: whose batches are to be made of them, with a text encoder's side if it reads one.
  """
  data, taken = stage["data"], stage["prompt"]["length"]
  room = lm.config.context - taken
  if room < 2:
    raise UserError(
      f"prompt.length {taken} fills the model's context of {lm.config.context}; lower it"
    )
  source = open_source(name, data["fields"], templates=data["templates"])
  lengths = list(dict.fromkeys(min(length, room) for length in data["lengths"]))
  encoder = encoder_side(stage, lm, method)
  return source, make_task(source, lm.tokenizer, data | {"lengths": lengths}, encoder)


def questions(stage: experiment.Options, split: str, most: int = 0) -> list[Example]:
  """The first `most` (0: all) questions of a split of a stage's data, each with an id.

  Raises UserError for plain text.
  """
  data = stage["data"]
  source = open_source(data[split], data["fields"], templates=data["templates"])
  count = min(len(source), most or len(source))
  found = [{"id": str(number), **source[number]} for number in range(count)]
  if not {"question", "input"} & found[0].keys():
    raise UserError(f"{data[split]} holds plain text; give questions with their answers")
  return found


def mixture(data: Mapping[str, Any]) -> MixtureOptions:
  """How the data sets of the training data are mixed."""
  return MixtureOptions(data["sampling"], data["temperature"], data["cap"])


def question_task(options: Mapping[str, Any], lm: FrozenLM, method: Method) -> QuestionTask:
  """The task of questions that come without a source."""
  data = options["data"]
  encoder, names = encoder_side(options, lm, method), data.get("tasks")
  return QuestionTask(lm.tokenizer, data["template"], data["lengths"], encoder, names)


def encoder_side(
  options: Mapping[str, Any], lm: FrozenLM, method: Method | None
) -> EncoderSide | None:
  """How texts are put to the text encoder, if the method reads one; cut to what it has room for."""
  if lm.encoder is None or method is None or not method.encoder_input:
    return None
  before = options.get("generator", {}).get("p_prime_length", 0)
  length = min(options["data"]["encoder_length"], lm.encoder.config.room - before)
  if length < 2:
    raise UserError(f"data.encoder_length leaves {length} tokens for the encoder; raise it")
  return EncoderSide(lm.encoder.tokenizer, length)


def data_sets(stage: experiment.Options) -> list[str]:
  """The data sets of a stage's training data that get prompts of their own; UserError for none."""
  data = stage["data"]
  names = open_source(data["train"], data["fields"], templates=data["templates"]).datasets
  if not names:
    raise UserError(
      f"prompt.per_task needs rows that name their data set, and {data['train']} has none; set"
      " prompt.per_task=False"
    )
  return list(names)


def _made_of(stage: experiment.Options) -> experiment.Options:
  """What of a stage's options its checkpoint depends on.

  Of data that the run made itself that is their digest, wherever the workdir is moved to.
  """
  made = {key: value for key, value in stage.items() if key not in _FREE}
  kept = {key: value for key, value in made["data"].items() if not made["made_data"].get(key)}
  return made | {"data": kept}


def _validator(
  method: Method,
  frozen: Tree,
  lm: FrozenLM,
  stage: experiment.Options,
  states: TextStates | None,
) -> Callable[[Tree], Mapping[str, float]]:
  source, task = open_task(stage, stage["data"]["validation"], lm, method)
  place = make_place(lm.mesh)
  rows, most = stage["evaluate"]["batch_size"], stage["train"]["validate_examples"]
  batches: list[Mapping[str, Any]] = list(scoring_batches(source, task, min(rows, most), most))
  if states is not None:
    batches = [states(batch) for batch in batches]
  return lambda trained: score(method, trained, frozen, batches, place)


def _stage_key(seed: int, name: str) -> jax.Array:
  """A random key of the stage's own, whatever stages run before it."""
  key = jax.random.key(seed)
  for byte in name.encode():
    key = jax.random.fold_in(key, byte)
  return key


def _taken(
  entries: Any, done: Mapping[str, System], initial: Tree, options: experiment.Options
) -> Tree:
  """("key=stage/part", ...) -> {key: that part of what the stage trained}.

  Of a stage that does not run (0 steps, or not in the order) the part comes from `initial`, if
  that has it.
  """
  parts = {}
  for key, reference in experiment.pairs(entries).items():
    stage, _, part = reference.partition("/")
    if stage not in options["stages"]:
      known = ", ".join(options["stages"])
      raise UserError(f"{key}={reference} names no stage; config.stages has {known}")
    source = done[stage].trained if stage in done else initial
    if stage in done and part not in source:
      raise UserError(f"{key}={reference}: stage {stage} trains {', '.join(source)}, not {part!r}")
    found = key if stage not in done and key in source else part
    if found in source:
      parts[key] = source[found]
  return parts


def _replaced(fresh: Tree, given: Tree, name: str) -> Tree:
  """The fresh tree with its given parts in place; UserError where shapes do not agree."""
  trained = {**fresh, **{key: given[key] for key in fresh if key in given}}
  shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (fresh, trained)]
  if shapes[0] != shapes[1]:
    raise UserError(
      f"stage {name} cannot start from what is given: its sizes differ from the config's prompt and"
      " recursion sizes; give it the config that trained it"
    )
  return trained
