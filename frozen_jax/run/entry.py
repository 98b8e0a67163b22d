"""Training: the stages of a config in a workdir, from the first line of config.json to the table.

What a finished run is used for is in `reuse.py`.
"""

import logging
import pathlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.data.mixture import held_out
from frozen_jax.evaluation.extensibility import compare
from frozen_jax.evaluation.rank_classification import check_normalisation
from frozen_jax.run import gated, report, retention, workdir
from frozen_jax.run import options as experiment
from frozen_jax.run.adapter import FOLDER, Adapter, load_adapter
from frozen_jax.run.candidates import table as candidates_table
from frozen_jax.run.candidates.job import Job as Candidates
from frozen_jax.run.frozen_lm import FrozenLM, load_model
from frozen_jax.run.interrupt import stoppable
from frozen_jax.run.reader import table as reader_table
from frozen_jax.run.reader.job import Job as Reader
from frozen_jax.run.results import (
  Results,
  frozen_size,
  paired_lines,
  results_of,
  say,
  titled,
  write_by_task,
)
from frozen_jax.run.scores import Scores, check, compared
from frozen_jax.run.stages import System, mixture, open_stage, open_task, questions, run_stage
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.metrics import MetricsWriter, read_metrics

_LOG = logging.getLogger(__name__)


def train(config: Any, folder: str | pathlib.Path) -> Results:
  """Runs the config's stages in the workdir `folder`, evaluates, returns what results.json holds.

  Run again, it goes on where it was, or returns the results of the complete run. Raises UserError
  for whatever the user can mend, Interrupted when SIGTERM came.
  """
  options, folder = experiment.resolve(config), pathlib.Path(folder)
  mesh = make_mesh(**options["mesh"])
  workdir.claim(folder, options)
  if (folder / workdir.RESULTS).exists():
    results = workdir.read_json(folder / workdir.RESULTS)
    say(f"The run in {folder} is complete.", results["table"])
    return results
  begun = time.monotonic()
  writer = MetricsWriter(folder, options["tensorboard"])
  with stoppable() as progress:
    lm = load_model(options["model"], mesh)
    _LOG.info("%s: %.1f M frozen parameters", lm.name, frozen_size(lm) / 1e6)
    before = checksum(lm.frozen({}))
    initial = _initial(options["init_from"], lm)
    reader = Reader(options, lm, folder) if "reader" in options else None
    if reader is not None:
      options = reader.prepare(writer, options["until"])
      if options["until"]:
        writer.close()
        return _stopped_behind(
          options["until"], reader, reader_table.retrieval(reader, options, lm)
        )
    candidates = Candidates(options, lm, folder) if "candidates" in options else None
    _check_data(options, lm)
    gated.check(options, lm)
    general, skills = retention.before_training(options, lm), {}
    systems: dict[str, System] = {}
    train_stage = lambda name, given: run_stage(name, given, lm, systems, initial, folder, writer)
    for name in _running(options):
      if candidates is not None and name == options["order"][-1]:
        options = candidates.prepare(options, systems, train_stage)
      systems[name] = train_stage(name, options)
      progress.step = systems[name].history.steps
      if name in options["evaluate"]["skills"]:
        skills[name] = retention.skill(systems[name], lm)
    *_, last = systems.values()
    _save(last, lm, folder)
    asked = partial(questions, last.options)
    if candidates is not None:
      asked = partial(candidates.proposed, systems[options["candidates"]["of"]])
    scores = _scores(options, systems, lm, reader, asked)
    kept: Results = {}
    if gated.budget_of(options):
      last, scores, kept["gate"] = gated.added(last, lm, options, asked, scores, folder)
      _save(last, lm, folder)
    kept["forgetting"] = retention.forgotten(systems, lm, general)
    kept["extensibility"] = {
      name: compare(before, retention.skill(systems[name], lm, last))
      for name, before in skills.items()
    }
    if reader is not None:
      kept["retrieval"] = reader_table.retrieval(reader, options, lm)
    unchanged = checksum(lm.frozen({})) == before
  writer.close()
  results = results_of(options, lm, systems, scores, unchanged) | kept
  results["seconds"] = round(time.monotonic() - begun, 3)
  if is_first_host():
    *_, last_scores = scores.values()
    report.write_lines(folder / workdir.PREDICTIONS, last_scores.predictions)
    write_by_task(folder, scores)
    report.draw(folder / workdir.PLOT, read_metrics(folder), titled(results["rows"], systems))
    report.write_json(folder / workdir.RESULTS, results)
  barrier("results written")
  say(
    results["table"],
    *paired_lines(results),
    *reader_table.lines(kept.get("retrieval", {})),
    *gated.lines(kept.get("gate", {})),
    *report.kept(kept["forgetting"], kept["extensibility"]),
  )
  return results


def _save(system: System, lm: FrozenLM, folder: pathlib.Path) -> None:
  """The adapter of the workdir."""
  if is_first_host():
    adapter = Adapter(lm, system.method, system.trained, system.fixed, system.options)
    adapter.save(folder / FOLDER)


def _scores(
  options: experiment.Options,
  systems: Mapping[str, System],
  lm: FrozenLM,
  reader: Reader | None,
  asked: gated.Asked,
) -> dict[str, Scores]:
  """The rows of the table, the last system's last."""
  *others, last = systems
  given = {name: systems[name] for name in others} if "candidates" in options else systems
  scores = compared(given, lm) if reader is None else reader_table.compared(reader, given, lm)
  if "candidates" not in options:
    return scores
  rows = list(asked("test", options["evaluate"]["max_examples"]))
  return candidates_table.compared(rows, scores, {last: systems[last]}, lm)


def _stopped_behind(step: str, job: Reader, found: Mapping[str, reader_table.Figures]) -> Results:
  """What a run gives that ends before its stages: the files made so far, and what was found."""
  told = f"Stopped behind {step}, as config.until asks; the files are in {job.steps.folder}."
  say(told, *reader_table.lines(found))
  return {"until": step, "files": dict(job.steps.digests), "retrieval": dict(found)}


def _running(options: experiment.Options) -> list[str]:
  """The stages that train at least one step."""
  stages = options["order"]
  running = [s for s in stages if experiment.stage_options(options, s)["train"]["steps"] > 0]
  if not running:
    raise UserError("every stage has 0 steps; give at least one stage of config.order some")
  return running


def _check_data(options: experiment.Options, lm: FrozenLM) -> None:
  """Makes each stage's method and opens its data: what is wrong shows before anything trains."""
  stage: experiment.Options = {}
  opened = []
  for name in _running(options):
    stage, method = open_stage(name, options, lm)
    for split in ("train", "validation"):
      wanted = (stage["data"], split, method.encoder_input)
      if wanted not in opened:
        opened.append(wanted)
        open_task(stage, stage["data"][split], lm, method)
    mixture(stage["data"])
    if stage["data"]["held_out"]:
      trained_on = open_task(stage, stage["data"]["train"], lm)[0]
      held_out(trained_on, [open_task(stage, one, lm)[0] for one in stage["data"]["held_out"]])
  check_normalisation(stage["evaluate"]["normalisation"])
  retention.check(options, lm, _running(options))
  check(stage, lm)


def _initial(init_from: str, lm: FrozenLM) -> Tree:
  """The small trees of `init_from`, by key; the trained ones go before the fixed."""
  if not init_from:
    return {}
  adapter = load_adapter(init_from, lm)
  return {**adapter.fixed, **adapter.trained}
