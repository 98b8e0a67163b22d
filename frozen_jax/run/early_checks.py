"""What can be known to be wrong, or in vain, from the config and small files, before any weight.

Every host checks it, so the first one says it and none waits for the others.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from frozen_jax.config.section import Section, of_weights
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.types import Method
from frozen_jax.data.batches import check_fit
from frozen_jax.data.examples import Example
from frozen_jax.data.field_names import check_fields
from frozen_jax.data.mixture import check_held_out
from frozen_jax.data.settings import DataSettings
from frozen_jax.data.sources import Source, open_source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation import retention
from frozen_jax.evaluation.predictions import check_question_lengths
from frozen_jax.evaluation.scores import check_test_questions
from frozen_jax.methods import METHODS
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.inputs import open_task
from frozen_jax.models.outline import ModelOutline, outline_model
from frozen_jax.pipelines.cascade.fitting import check_cascade
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.load_adapter import read_stored, stored_arrays
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.run.settings import METHOD_SECTIONS

_LOG = logging.getLogger(__name__)
_RESERVED = "prompt.length"  # positions that every method leaves free, so that all are compared


def check_given(run: RunSettings) -> None:
  """Opens the data and `init_from` of a run that is to train, before any model.

  Raises UserError for what is wrong.
  """
  if not run.running:
    raise UserError("every stage has 0 steps; give at least one stage of config.stage_order some")
  if run.init_from:
    stored_arrays(run.init_from)
  for number, stage in enumerate(run.running):
    before = [one.name for one in run.running[:number]]
    missing = [
      name for name, link in stage.frozen_inputs.items() if link.partition("/")[0] not in before
    ]
    read = METHODS[stage.method].inputs_read(stage.sections)
    unlinked = [name for name, needed in read.items() if needed and name not in stage.frozen_inputs]
    if unlinked or (missing and not run.init_from):
      raise missing_input(stage, unlinked or missing)
    _check_order(stage, before, [one.name for one in run.running])
    for source in {link.partition("/")[0] for link in stage.init_from.values()} & {*before}:
      check_start(stage, run.stage(source).sections, f"what stage {source} trains")
  check_data(run, run.running)


def _check_order(stage: StageSettings, before: Collection[str], running: Collection[str]) -> None:
  """UserError for a stage that starts from, or reads, one that runs after it."""
  for name, link in {**stage.init_from, **stage.frozen_inputs}.items():
    source = link.partition("/")[0]
    if source in running and source not in before:
      raise UserError(
        f"stage {stage.name} has {name}={link}, but stage {source} does not run before it; change"
        " config.stage_order, or the link"
      )


def check_start(stage: StageSettings, sections: Mapping[str, Section], what: str) -> None:
  """UserError where trained numbers would compute something else in a stage, in the same shapes.

  sections: under which they were trained, by name. what: they are, for the message.
  """
  for name in stage.sections.keys() & sections.keys():
    trained = of_weights(sections[name], name)
    for key, value in of_weights(stage.sections[name], name).items():
      if trained.get(key, value) != value:
        raise UserError(
          f"stage {stage.name} cannot start from {what}: it was trained with {key}={trained[key]},"
          f" and the stage has {value}; give it --config.{key}={trained[key]}"
        )


def check_position(stage: str, part: str, link: str, method: Method, source: Method) -> None:
  """UserError where a stage's part does not act on the LM where the one does that it links to.

  link: "stage/part" of what `source` trains; method: the stage's own.
  """
  theirs = source.part_positions.get(link.partition("/")[2], "elsewhere")
  own = method.part_positions.get(part, "elsewhere")
  if theirs != own:
    raise UserError(
      f"stage {stage} has {part}={link}, which acts {theirs}, and {part} of the stage {own}; leave"
      " the link out, or give both stages the same layers and prompts"
    )


def check_data(run: RunSettings, stages: tuple[StageSettings, ...], training: bool = True) -> None:
  """Opens the data of stages, of which the last is scored on `data.test`.

  training: whether that on which they train is opened too. Raises UserError for what cannot be
  read; and, if all is opened, for a name of `data.fields` that no source has.
  """
  named: dict[tuple[str, ...], list[Source]] = {}
  opened: dict[tuple[str, tuple[str, ...], str], Source] = {}
  for stage in stages:
    data = stage.data
    for spec in _specs(data, training, scored=stage is stages[-1]):
      wanted = (spec, data.fields, data.templates)
      if wanted not in opened:
        opened[wanted] = open_source(spec, data.fields, templates=data.templates)
        named.setdefault(data.fields, []).append(opened[wanted])
  if run.evaluate.general_text:
    fields = run.stages[-1].data.fields
    named.setdefault(fields, []).append(open_source(run.evaluate.general_text, fields))
  for fields, sources in named.items() if training else ():
    check_fields(fields, sources)


def _specs(data: DataSettings, training: bool, scored: bool) -> Iterator[str]:
  if training:
    yield from (data.train, data.validation)
  yield from data.held_out
  if scored:
    yield data.test


def check_with_model(run: RunSettings, lm: ModelOutline) -> None:
  """Checks a run that is to train against the sizes and the tokenizer of its model.

  Raises UserError for a prompt, a question or a budget that the context does not hold, and for
  settings that a method or a pipeline cannot have on this model.
  """
  for name in run.pipelines:
    PIPELINES[name].check(run, lm)
  check_stages(run, lm, made=not run.pipelines)
  _warn_of_shared_data(run.running[-1], lm)


def check_stages(run: RunSettings, lm: FrozenLM, made: bool = True) -> None:
  """Makes each stage's method and opens its data: what is wrong shows before anything trains.

  The data are those of the config, or what pipelines have made of them. made: whether they are what
  will be trained on, so that some of each must fit into `data.lengths`.
  """
  opened: list[Any] = []
  methods: dict[str, Method] = {}
  for stage in run.running:
    method, length = stage.tuned_model(lm).method, stage.prompt.length
    for part, link in {**stage.init_from, **stage.frozen_inputs}.items():
      if source := methods.get(link.partition("/")[0]):
        check_position(stage.name, part, link, method, source)
    methods[stage.name] = method
    trained_on = (stage.data.train, None)
    for spec, examples in (trained_on, (stage.data.validation, stage.train.validate_examples)):
      wanted = (stage.data, spec, examples, method.encoder_input)
      if wanted not in opened:
        opened.append(wanted)
        source_and_task = open_task(lm, stage.data, spec, length, method)
        if made:
          check_fit(*source_and_task, examples)
    if stage.data.held_out:
      train = open_task(lm, stage.data, stage.data.train, length)[0]
      others = [open_task(lm, stage.data, one, length)[0] for one in stage.data.held_out]
      check_held_out(train, others)
  last = run.running[-1]
  data = {stage.name: stage.data for stage in run.running}
  retention.check_retention(lm, last.data, run.evaluate, data)
  check_test_questions(lm, last.data, last.evaluate, last.prompt.length)
  if made:
    _check_scored(last, lm)
  check_cascade(run, lm)


def _check_scored(last: StageSettings, lm: ModelOutline | FrozenLM) -> None:
  """UserError where nothing fits of the data on which the last stage is scored."""
  for spec in (last.data.test, *last.data.held_out):
    check_fit(*open_task(lm, last.data, spec, last.prompt.length), last.evaluate.max_examples)


def check_evaluation(run: RunSettings, folder: AnyPath) -> None:
  """Checks the evaluation of a finished run (or an exported adapter) before any weight is read.

  Raises UserError for a folder without an adapter, for data that cannot be opened, and for a test
  question that the context does not hold.
  """
  _, info = read_stored(folder)
  check_data(run, run.stages[-1:], training=False)
  lm, last = outline_model(run.model), run.stages[-1]
  for name in run.pipelines:
    PIPELINES[name].check(run, lm, training=False)
  if not run.pipelines:
    last = _as_tuned(last, info)
    check_test_questions(lm, last.data, last.evaluate, last.prompt.length)
    _check_scored(last, lm)


def check_questions(
  run: RunSettings, folder: AnyPath, lm: ModelOutline, examples: Sequence[Example], where: str
) -> None:
  """Checks questions that a finished run is to answer, as far as that takes no weight.

  where: what they come from. Raises UserError for what is no question, or is too long.
  """
  for name in run.pipelines:
    examples = PIPELINES[name].check_questions(run, lm, examples)
  last = _as_tuned(run.stages[-1], read_stored(folder)[1])
  task = QuestionTask(lm.tokenizer, last.data.template)
  max_new_tokens, prompt_length = last.evaluate.max_new_tokens, last.prompt.length
  check_question_lengths(lm, task, examples, where, max_new_tokens, prompt_length)


def _as_tuned(stage: StageSettings, info: Mapping[str, Any]) -> StageSettings:
  """The stage with the template that an adapter, by its description, was tuned with."""
  inputs = info.get("inputs")
  stored = inputs if isinstance(inputs, Mapping) else {}
  return stage.with_data(template=stored.get("template", stage.data.template))


def _warn_of_shared_data(stage: StageSettings, lm: FrozenLM) -> None:
  """Says which data is scored, or picks the best step, and is trained on too."""
  data = stage.data
  opened = lambda spec: open_task(lm, data, spec, stage.prompt.length)[0]
  train = opened(data.train)
  for key, spec in (("validation", data.validation), ("test", data.test)):
    if shared := opened(spec).shared_with(train):
      _LOG.warning(
        "data.%s: %s is trained on too, so its figures say nothing of other data",
        *(key, ", ".join(shared)),
      )


def missing_input(stage: StageSettings, names: Sequence[str]) -> UserError:
  """The error of a stage whose frozen inputs come from nowhere."""
  without = METHODS[stage.method].without_inputs
  return UserError(
    f"stage {stage.name} reads {', '.join(names)} as a frozen input, but the stage that tunes"
    " it does not run and init_from has none; give one of them, or"
    f" --config.stages.{stage.name}.{without}"
  )


def unread(config: ConfigDict, given: Iterable[tuple[str, str]]) -> list[str]:
  """One line for each section, stage or rate among the given keys that nothing reads.

  Args:
    config: as completed, with the given values in it; its stages have methods that there are.
    given: (dotted key, text) in the order of the command line.
  """
  stages = {name: config.stages[name].method for name in config.stage_order}
  methods = {name: METHODS[name] for name in stages.values()}
  read = {section for method in methods.values() for section in method.sections}
  rates = {part for method in methods.values() for part in method.learning_rates}
  lines = [_line(key, stages, read, rates) for key, _ in given]
  return list(dict.fromkeys(line for line in lines if line))


def _line(key: str, stages: Mapping[str, str], read: set[str], rates: set[str]) -> str:
  """What is said of one key, "" if something reads it."""
  section, _, name = key.partition(".")
  by = f"no stage of this run ({', '.join(f'{one}: {how}' for one, how in stages.items())})"
  if section == "stages":
    stage = name.partition(".")[0]
    return "" if stage in stages else f"config.stages.{stage} is not read: it is not in stage_order"
  if key.startswith("train.learning_rate."):
    part = key.rpartition(".")[2]
    return "" if part in rates else f"config.{key} is not read: {by} trains {part!r}"
  of_method = section in METHOD_SECTIONS or section == "prompt"
  if of_method and section not in read and key != _RESERVED:
    return f"config.{section} is not read: {by} has a method that does"
  return ""
