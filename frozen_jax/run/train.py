"""Training: the stages of a config in a workdir, from config.json to the table."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.stored_programs import stored_programs
from frozen_jax.core.user_path import user_path
from frozen_jax.evaluation import retention
from frozen_jax.evaluation.extensibility import compare_outputs
from frozen_jax.models.frozen_lm import FrozenLM, load_model
from frozen_jax.models.outline import outline_model
from frozen_jax.pipelines.experiment import RunSettings, StageSettings, TrainedStage
from frozen_jax.pipelines.load_adapter import ADAPTER
from frozen_jax.pipelines.pipeline import Pipeline
from frozen_jax.run import workdir
from frozen_jax.run.early_checks import (
  check_given,
  check_stages,
  check_with_model,
)
from frozen_jax.run.initial_parts import InitialParts, load_initial_parts
from frozen_jax.run.interrupt import check, stoppable
from frozen_jax.run.lock import locked
from frozen_jax.run.results.records import (
  Record,
  frozen_size,
  make_record,
  training_record,
  write_record,
)
from frozen_jax.run.results.report import record_text, row_titles, say
from frozen_jax.run.scoring import (
  add_cascade,
  open_pipelines,
  pipeline_lines,
  score_baselines,
  score_models,
)
from frozen_jax.run.seeds import check_single, train_seeds
from frozen_jax.run.settings import compiled_as_asked, resolve_run
from frozen_jax.run.stage import run_stage
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.mesh import log_mesh, make_mesh
from frozen_jax.sharding.rules import check_batch_size
from frozen_jax.training.metrics import MetricsWriter, read_metrics

_LOG = logging.getLogger(__name__)


@compiled_as_asked
def train(config: Any, folder: str | AnyPath) -> Record:
  """Runs the config's stages in the workdir `folder`, evaluates, returns what results.json holds.

  Run again, it continues where it was, or returns the results of the complete run. Of a config with
  `seeds` it runs each, and returns what seeds.json holds (`run.seeds`). Raises UserError for
  whatever the user can fix, Interrupted when SIGTERM or SIGINT came.
  """
  run, folder = resolve_run(config), user_path(folder)
  if run.seeds:
    return train_seeds(run, folder, _train_one)
  check_single(folder)
  return _train_one(config, folder)


def _train_one(config: Any, folder: AnyPath) -> Record:
  run = resolve_run(config)
  mesh = make_mesh(**dataclasses.asdict(run.mesh), rows=run.rows)
  for stage in run.running:
    name = f"stage {stage.name}: train.batch_size"
    check_batch_size(stage.train.batch_size, mesh, stage.train.accumulate, name)
  if (folder / workdir.RESULTS).exists() and workdir.claim(folder, run):
    return _complete(run, folder)
  with locked(folder):
    if workdir.claim(folder, run):  # by another process, meanwhile
      return _complete(run, folder)
    return _train(run, mesh, folder)


def _complete(run: RunSettings, folder: AnyPath) -> Record:
  """Says what the complete run in the workdir found; its record."""
  record = workdir.read_workdir_json(folder / workdir.RESULTS)
  say(f"The run in {folder} is complete.", *_text(record))
  if keys := workdir.scored_otherwise(folder, run):
    say(f"It was scored with another {', '.join(keys)}; --mode=evaluate scores it with these.")
  return record


def _train(run: RunSettings, mesh: Mesh, folder: AnyPath) -> Record:
  """The run, from its first step or from where it was stopped."""
  check_given(run)
  log_mesh(mesh)
  begun = time.monotonic()
  with (
    stoppable(folder),
    stored_programs(folder, is_first_host()),
    MetricsWriter(folder, run.tensorboard) as writer,
  ):
    check_with_model(run, outline_model(run.model))
    lm = load_model(run.model, mesh)
    _LOG.info("%s: %.1f M frozen parameters", lm.name, frozen_size(lm) / 1e6)
    before = checksum(lm.frozen({}))
    initial = load_initial_parts(run.init_from, lm, run.running)
    read = {"data": workdir.data_digests(run), "inputs": workdir.input_digests(run, lm)}
    pipelines = open_pipelines(run, lm, folder)
    for pipeline in pipelines:
      run = pipeline.prepare(run, writer)
    if run.stop_after:
      return _stopped(run, pipelines)
    if pipelines:
      check_stages(run, lm)
    check(folder)
    begins = not pipelines and not workdir.has_checkpoints(folder, run)
    baselines = score_baselines(lm, run.running[-1]) if begins else {}
    general = retention.general_text_before(lm, run.stages[-1].data, run.evaluate)
    trained, skills = _train_stages(run, lm, pipelines, initial, folder, writer)
    models = {name: (one.settings, one.model) for name, one in trained.items()}
    scores, scored = score_models(run, lm, models, pipelines, baselines)
    model, scores, gate = add_cascade(run, scored, scores, pipelines, folder)
    workdir.reopen(folder, run)
    if is_first_host():
      model.save(folder / ADAPTER)
    record = make_record(run, lm, model.method.name, scores, checksum(lm.frozen({})) == before)
    record |= training_record(trained) | gate
    record["metrics"]["tokens_per_second"] = trained[run.running[-1].name].result.tokens_per_second
    record |= _retained(run, trained, skills, general) | read
    for pipeline in pipelines:
      record |= {name: value for name, value in pipeline.report().items() if value}
    writer.close()
    record["seconds"] = round(time.monotonic() - begun, 3)
    titles = row_titles({name: one.settings.method for name, one in trained.items()})
    write_record(folder, record, scores, read_metrics(folder), titles)
  say(*_text(record), *pipeline_lines(pipelines, record))
  return record


def _train_stages(
  run: RunSettings,
  lm: FrozenLM,
  pipelines: Sequence[Pipeline],
  initial: InitialParts,
  folder: AnyPath,
  writer: MetricsWriter,
) -> tuple[dict[str, TrainedStage], dict[str, Any]]:
  """The stages, trained one after the other, and what skills answered once they were learnt."""
  trained: dict[str, TrainedStage] = {}
  skills: dict[str, Any] = {}

  def train_stage(stage: StageSettings) -> TrainedStage:
    return run_stage(stage, lm, trained, initial, folder, writer)

  for stage in run.running:
    for pipeline in pipelines:
      stage = pipeline.stage(stage, trained, train_stage)
    one = trained[stage.name] = train_stage(stage)
    check(folder)
    if is_first_host():
      one.model.save(folder / workdir.ADAPTERS / stage.name)
    if stage.name in run.evaluate.skills:
      skills[stage.name] = _skill_outputs(one)
  return trained, skills


def _retained(
  run: RunSettings, trained: Mapping[str, TrainedStage], skills: Mapping[str, Any], general: Any
) -> Record:
  """What training has left of the LM and of earlier skills."""
  *_, last = trained.values()
  models = {name: one.model for name, one in trained.items()}
  found: Record = {
    "forgetting": retention.forgetting_by_model(models, last.settings.data, run.evaluate, general),
    "extensibility": {
      name: compare_outputs(before, _skill_outputs(trained[name], last))
      for name, before in skills.items()
    },
  }
  return {name: value for name, value in found.items() if value}


def _skill_outputs(stage: TrainedStage, later: TrainedStage | None = None) -> Any:
  """What a stage's model answers on its own test data, or after a later stage was trained."""
  settings = stage.settings
  return retention.skill_outputs(
    stage.model,
    settings.data,
    settings.evaluate,
    settings.prompt.length,
    None if later is None else later.model,
  )


def _text(record: Record) -> list[str]:
  methods = {name: one["method"] for name, one in record.get("stages", {}).items()}
  return record_text(record, row_titles(methods))


def _stopped(run: RunSettings, pipelines: Sequence[Pipeline]) -> Record:
  """What a run gives that ends before its stages: the files made so far, and what was found."""
  reports: Record = {}
  for pipeline in pipelines:
    reports |= pipeline.report()
  files = {name: digest for one in pipelines for name, digest in one.artifacts.digests.items()}
  folders = ", ".join(str(one.artifacts.given) for one in pipelines if one.artifacts.digests)
  say(
    f"Stopped after {run.stop_after}, as config.stop_after asks; the files are in {folders}.",
    *(line for one in pipelines for line in one.lines(reports)),
  )
  return {"stop_after": run.stop_after, "files": files, **reports}
