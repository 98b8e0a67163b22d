"""Evaluation of a finished run on the config's `data.test`, as a record of its own."""

import contextlib
import copy
import dataclasses
import itertools
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from frozen_jax.config.section import (
  differences,
  identity,
  resolve,
  section_values,
  with_free_fields,
)
from frozen_jax.core import interruption
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import (
  check_writable,
  claim_folder,
  put_folder,
  temporary_folder,
  write_json,
)
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.seed_folders import seed_folder, seeds_in
from frozen_jax.core.user_path import user_path
from frozen_jax.data.json_lines import ENDINGS, is_row_file
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.methods import METHODS
from frozen_jax.models.frozen_lm import load_model
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.cascade.fitting import check_cascade
from frozen_jax.pipelines.experiment import RunSettings, StageSettings, subsection
from frozen_jax.pipelines.load_adapter import ADAPTER, load_adapter, read_stored
from frozen_jax.pipelines.pipeline import ScoredModel
from frozen_jax.run import workdir
from frozen_jax.run.early_checks import check_evaluation
from frozen_jax.run.interrupt import check, stoppable
from frozen_jax.run.results.records import Record, make_record, write_record
from frozen_jax.run.results.report import record_text, row_titles, say
from frozen_jax.run.scoring import add_cascade, open_pipelines, pipeline_lines, score_models
from frozen_jax.run.seeds import join, of_seed
from frozen_jax.run.settings import METHOD_SECTIONS, compiled_as_asked, resolve_run
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.mesh import log_mesh, make_mesh
from frozen_jax.training.metrics import MetricsWriter

_LOG = logging.getLogger(__name__)
_INPUTS = ("template", "encoder_length")  # of the `data` section


@compiled_as_asked
def evaluate(config: Any, folder: str | AnyPath) -> Record:
  """Scores the adapters of a complete run (or an exported one) on the config's `data.test`.

  What was trained keeps its method, sections, template and seed (`as_trained`), whatever the config
  says, but for what a section lets be chosen at use (`Section.as_used`). Writes a record of its own
  to FOLDER/evaluations/NAME (config.json, results.json, predictions.jsonl, by_task.json,
  report.png), as a whole, and returns it; what the training wrote stays as it is. In a workdir of
  several seeds it scores each of them (or those that the config gives), and returns what seeds.json
  holds (`run.seeds`). Raises Interrupted when SIGTERM or SIGINT came.
  """
  with stoppable():
    run, folder = resolve_run(config), user_path(folder)
    if seeds := run.seeds or seeds_in(folder):
      return _evaluate_seeds(run, folder, seeds)
    return _evaluate(config, folder)


def _evaluate_seeds(run: RunSettings, folder: AnyPath, seeds: Sequence[int]) -> Record:
  """Scores each seed, under a name that is the same for all, and joins their tables."""
  folders = [seed_folder(folder, seed) for seed in seeds]
  for one in folders:
    read_stored(one)  # what is missing is said before any is scored
  name = _place(folder, run).name
  if not run.values["evaluation"]:
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    taken = lambda name: any((one / workdir.EVALUATIONS / name).exists() for one in folders)
    name = next(itertools.filterfalse(taken, names))
  for seed, one in zip(seeds, folders, strict=True):
    _LOG.info("seed %d", seed)
    _evaluate({**of_seed(run, seed), "evaluation": name}, one)
  scored = [one / workdir.EVALUATIONS / name for one in folders]
  return join(scored, folder / workdir.EVALUATIONS / name)


def _evaluate(config: Any, folder: AnyPath) -> Record:
  config, keys = as_trained(config, folder)
  if keys:
    _LOG.warning(
      "config.%s: not used, since what was trained keeps its own; train with %s to change it",
      *(", config.".join(keys), "it" if len(keys) == 1 else "them"),
    )
  places = adapter_places(resolve_run(config), folder)
  *_, last_place = places.values()
  check_evaluation(resolve_run(config), last_place)
  check_writable(folder)
  run, model = open_run(config, last_place)
  check_cascade(run, model.lm)
  before = checksum(model.lm.frozen({}))
  pipelines = open_pipelines(run, model.lm, folder)
  writer = MetricsWriter(folder)
  for pipeline in pipelines:
    run = pipeline.prepare(run, writer)
  writer.close()
  models = _models(run, model, places)
  last = run.stages[-1].name
  settings = models[last][0]
  for pipeline in pipelines:
    settings = pipeline.evaluated(settings, model)
  models[last] = settings, dataclasses.replace(model, inference=None)
  scores, scored = score_models(run, model.lm, models, pipelines)
  titles = row_titles({name: one.method.name for name, (_, one) in models.items()})
  place = _place(folder, run)
  with _new_folder(place) as target:
    model, scores, gate = add_cascade(run, scored, scores, pipelines, target, model.inference)
    unchanged = checksum(model.lm.frozen({})) == before
    record = make_record(run, model.lm, model.method.name, scores, unchanged) | gate
    record |= _used_otherwise(models)
    for pipeline in pipelines:
      record |= {name: value for name, value in pipeline.report().items() if value}
    if is_first_host():
      write_json(target / workdir.CONFIG, run.values)
    write_record(target, record, scores, [], titles)
    check()
    if is_first_host():
      place = _put(target, place, anew=not run.values["evaluation"])
  if gate and is_first_host() and last not in record.get("used_with", {}):
    stored = load_adapter(places[last], model.lm)  # nothing else of it is to become the config's
    own = folder / ADAPTER if places[last] == folder else places[last]
    dataclasses.replace(stored, inference=model.inference).save(own)
  say(*record_text(record, titles), *pipeline_lines(pipelines, record))
  say(f"The record is in {place}.")
  return record


def open_run(config: Any, folder: AnyPath) -> tuple[RunSettings, TunedModel]:
  """The settings of a config and the adapter of a workdir, as it is to be used under them.

  What the adapter was trained with stays (its method, its prompt template); data, generation and
  devices are the config's.
  """
  run = resolve_run(config)
  read_stored(folder)  # says what is missing before the model is loaded
  mesh = make_mesh(**dataclasses.asdict(run.mesh))
  log_mesh(mesh)
  lm = load_model(run.model, mesh)
  return run, _as_configured(load_adapter(folder, lm), run.stages[-1])


def _as_configured(model: TunedModel, stage: StageSettings) -> TunedModel:
  """A loaded model with a stage's generation, lengths of texts and what else it has for use."""
  inputs = dataclasses.replace(model.inputs, lengths=stage.data.lengths)
  generation = subsection(stage.evaluate, GenerationSettings)
  model = dataclasses.replace(model, inputs=inputs, generation=generation)
  sections = {
    name: own.as_used(stage.sections[name]) if name in stage.sections else own
    for name, own in model.sections.items()
  }
  if sections == model.sections:
    return model
  changed = _changed(model.sections, sections)
  for key, value in changed.items():
    what = f"{key}={value['used']}", f"{key}={value['trained']}"
    _LOG.warning("stage %s answers with %s; it was trained with %s", stage.name, *what)
  method = METHODS[model.method.name].build(
    model.lm, sections, remat=model.remat, datasets=inputs.datasets
  )
  return dataclasses.replace(model, method=method, sections=sections)


def _changed(trained: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{dotted key: {"trained", "used"}} of the values in which sections differ."""
  found = {}
  for name, section in used.items():
    before, now = identity(trained[name]), identity(section)
    for key in differences(section, before, name):
      values = [before, now]
      for part in key.split(".")[1:]:
        values = [tree[part] for tree in values]
      found[key] = dict(zip(("trained", "used"), values, strict=True))
  return found


def _used_otherwise(models: Mapping[str, ScoredModel]) -> Record:
  """{"used_with": {stage: as `_changed`}} of the models that are not used as they were trained."""
  found = {
    name: _changed({key: settings.sections.get(key, one) for key, one in own.items()}, own)
    for name, (settings, model) in models.items()
    for own in [model.sections]
  }
  found = {name: changed for name, changed in found.items() if changed}
  return {"used_with": found} if found else {}


def _models(
  run: RunSettings, model: TunedModel, places: Mapping[str, AnyPath]
) -> dict[str, ScoredModel]:
  """Every adapter that the workdir has kept, the last stage's last: `model`."""
  *others, last = run.stages
  models: dict[str, ScoredModel] = {}
  for stage in others:
    one = _as_configured(load_adapter(places[stage.name], model.lm), stage)
    own = dataclasses.replace(one, inference=None)
    models[stage.name] = _with_own_inputs(stage, own), own
  models[last.name] = _with_own_inputs(last, model), model
  return models


def adapter_places(run: RunSettings, folder: AnyPath) -> dict[str, AnyPath]:
  """The folder of each stage's adapter that there is, in the order of the stages.

  `folder`, a workdir, stands for the adapter of the last stage that was trained there. It is the
  run's last stage's where it holds none of these stages', as an exported adapter does.
  """
  stored, own = folder / workdir.CONFIG, ""
  if stored.exists():
    with contextlib.suppress(UserError):  # of a config of an earlier version
      own = resolve_run(workdir.read_workdir_json(stored)).running[-1].name
  kept = folder / workdir.ADAPTERS
  places = {
    stage.name: folder if stage.name == own else kept / stage.name
    for stage in run.stages
    if stage.name == own or (kept / stage.name).is_dir()
  }
  return places or {run.stages[-1].name: folder}


def _with_own_inputs(stage: StageSettings, model: TunedModel) -> StageSettings:
  """The stage's settings with the template, the encoder's length and the data sets of the model."""
  inputs = model.inputs
  return stage.with_data(
    template=inputs.template, encoder_length=inputs.encoder_length, datasets=inputs.datasets
  )


def _place(folder: AnyPath, run: RunSettings) -> AnyPath:
  """FOLDER/evaluations/NAME: the name that the config gives, else one for the test data."""
  parent, name = folder / workdir.EVALUATIONS, run.values["evaluation"]
  if name:
    return parent / name
  test = run.values["data"]["test"]
  base = re.sub(rf"({'|'.join(ENDINGS)})(\.gz)?$", "", pathlib.Path(test).name)
  base = base if is_row_file(test) else test
  return parent / (re.sub(r"[^\w.-]+", "_", base)[:80] or "test")


@contextlib.contextmanager
def _new_folder(place: AnyPath) -> Iterator[pathlib.Path]:
  """A folder alongside `place` that the first host fills; deleted where it was not put there."""
  if not is_first_host():
    yield pathlib.Path(place.name)  # nothing is written to it
    return
  with temporary_folder(place) as target:
    yield target


def _put(target: pathlib.Path, place: AnyPath, anew: bool) -> AnyPath:
  """Moves a complete folder to `place`, and returns where it is.

  What is there is replaced, or with `anew` stays: the name is then PLACE-2, ...
  """
  free = place
  with interruption.deferred():
    if anew or not place.exists():
      for number in itertools.count(2):
        with contextlib.suppress(FileExistsError):
          claim_folder(free)
          break
        free = place.with_name(f"{place.name}-{number}")
    put_folder(target, free)
  return free


def as_trained(config: Any, folder: Any) -> tuple[dict[str, Any], list[str]]:
  """The values of a config with those that the adapters of a workdir were trained with.

  These are each stage's method, the sections that it reads, how questions become its inputs, and
  the seeds. Stages without an adapter are left out (`adapter_places`). folder: a workdir, or an
  exported adapter. Returns (values, the keys that the config has otherwise). Raises UserError where
  there is no adapter.
  """
  run = resolve_run(config)
  values = copy.deepcopy(dict(run.values))
  keys = _keep_seed(values, folder)
  places = adapter_places(run, folder)
  values["stage_order"] = list(places)
  for name, place in places.items():
    keys += _keep(run.stage(name), values["stages"][name], read_stored(place)[1])
  return values, list(dict.fromkeys(keys))


def _keep_seed(values: dict[str, Any], folder: Any) -> list[str]:
  """Puts the seed of the workdir's run into the values; its key where it differs."""
  if not (folder / workdir.CONFIG).exists():
    return []
  given, seed = values["seed"], workdir.read_workdir_json(folder / workdir.CONFIG).get("seed")
  if seed in (None, given):
    return []
  values["seed"] = seed
  return ["seed"]


def _keep(stage: StageSettings, entry: dict[str, Any], info: Mapping[str, Any]) -> list[str]:
  """Puts into a stage's entry what its adapter says of itself; the keys that differ."""
  keys: list[str] = []
  method = METHODS.get(info.get("method", ""))
  if method is None or not isinstance(info.get("sections"), Mapping):
    return keys  # said where the adapter is loaded
  if method.name != stage.method:
    keys.append(f"stages.{stage.name}.method")
    for name in METHOD_SECTIONS:
      entry.pop(name, None)
    entry.get("train", {}).pop("learning_rate", None)
    entry["method"] = method.name
  for name, kind in method.sections.items():
    section: Any = resolve(kind, info["sections"].get(name, {}), name)
    own = stage.sections.get(name)
    differing = [] if own is None else differences(section, identity(own), name)
    if own is None or differing:
      entry[name] = section_values(section) if own is None else with_free_fields(section, own)
    keys += differing
  inputs: Any = info.get("inputs")
  for name in _INPUTS if isinstance(inputs, Mapping) else ():
    read = method.reads_encoder or name != "encoder_length"
    if read and name in inputs and inputs[name] != getattr(stage.data, name):
      entry["data"] = {**entry.get("data", {}), name: inputs[name]}
      keys.append(f"data.{name}")
  return keys
