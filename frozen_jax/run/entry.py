"""The four entries of a run: train, evaluate, predict, export, each of a config and a workdir."""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from frozen_jax.backbones import decoder, encoder
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.data.mixture import held_out
from frozen_jax.data.sources import open_questions
from frozen_jax.evaluation.extensibility import compare
from frozen_jax.evaluation.rank_classification import check_normalisation
from frozen_jax.export.peft import write_peft_prompt
from frozen_jax.run import options as experiment
from frozen_jax.run import report, retention, workdir
from frozen_jax.run.adapter import FOLDER, Adapter, load_adapter, read_stored
from frozen_jax.run.answering import answer, check_questions, prediction_rows
from frozen_jax.run.frozen_lm import FrozenLM, load_frozen, with_encoder
from frozen_jax.run.interrupt import stoppable
from frozen_jax.run.reader import table as reader_table
from frozen_jax.run.reader.job import Job
from frozen_jax.run.scores import Scores, check, compared, score
from frozen_jax.run.stages import System, mixture, open_stage, open_task, question_task, run_stage
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import barrier, is_first_host
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.metrics import MetricsWriter, read_metrics

_LOG = logging.getLogger(__name__)

Results = dict[str, Any]


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
    _say(f"The run in {folder} is complete.", results["table"])
    return results
  begun = time.monotonic()
  writer = MetricsWriter(folder, options["tensorboard"])
  with stoppable() as progress:
    lm = _load(options, mesh)
    _LOG.info("%s: %.1f M frozen parameters", lm.name, _frozen_size(lm) / 1e6)
    before = checksum(lm.frozen({}))
    initial = _initial(options["init_from"], lm)
    job = Job(options, lm, folder) if "reader" in options else None
    if job is not None:
      options = job.prepare(writer, options["until"])
      if options["until"]:
        return _stopped_behind(options["until"], job)
    _check_data(options, lm)
    general, skills = retention.before_training(options, lm), {}
    systems: dict[str, System] = {}
    for name in _running(options):
      systems[name] = run_stage(name, options, lm, systems, initial, folder, writer)
      progress.step = systems[name].history.steps
      if name in options["evaluate"]["skills"]:
        skills[name] = retention.skill(systems[name], lm)
    *_, last = systems.values()
    if is_first_host():
      Adapter(lm, last.method, last.trained, last.fixed, last.options).save(folder / FOLDER)
    scores = compared(systems, lm) if job is None else reader_table.compared(job, systems, lm)
    kept: Results = {"forgetting": retention.forgotten(systems, lm, general)}
    kept["extensibility"] = {
      name: compare(before, retention.skill(systems[name], lm, last))
      for name, before in skills.items()
    }
    if job is not None:
      kept["retrieval"] = reader_table.retrieval(job, options, lm)
    unchanged = checksum(lm.frozen({})) == before
  writer.close()
  results = _results(options, lm, systems, scores, unchanged) | kept
  results["seconds"] = round(time.monotonic() - begun, 3)
  if is_first_host():
    *_, last_scores = scores.values()
    report.write_lines(folder / workdir.PREDICTIONS, last_scores.predictions)
    _write_by_task(folder, scores)
    report.draw(folder / workdir.PLOT, read_metrics(folder), _titled(results["rows"], systems))
    report.write_json(folder / workdir.RESULTS, results)
  barrier("results written")
  _say(
    results["table"],
    *reader_table.lines(kept.get("retrieval", {})),
    *report.kept(kept["forgetting"], kept["extensibility"]),
  )
  return results


def evaluate(config: Any, folder: str | pathlib.Path) -> Results:
  """Scores the adapter of a complete run (or an exported one) on the config's `data.test`.

  Writes predictions.jsonl, and the figures into results.json and by_task.json, where those of the
  run's other systems stay; returns what results.json holds.
  """
  folder = pathlib.Path(folder)
  adapter, options = _open(config, folder)
  before = checksum(adapter.lm.frozen({}))
  row = experiment.resolve(config)["order"][-1]
  system = System(adapter.method, adapter.trained, adapter.fixed, options)
  if "reader" in options:
    scores, recall = _read_anew(config, folder, system, adapter.lm)
  else:
    scores, recall = {row: score(system, adapter.lm)}, {}
  found = scores[row]
  path = folder / workdir.RESULTS
  results = workdir.read_json(path) if path.exists() else {"method": options["method"]}
  held = results.get("held_out", {})
  results |= {
    "model": options["model"]["name"],
    "metrics": results.get("metrics", {}) | found.figures,
    "held_out": held | {n: held.get(n, {}) | {row: own} for n, own in found.held_out.items()},
    "frozen_fingerprint": adapter.lm.fingerprint,
    "frozen_unchanged": checksum(adapter.lm.frozen({})) == before,
  } | recall
  if is_first_host():
    report.write_lines(folder / workdir.PREDICTIONS, found.predictions)
    _write_by_task(folder, {row: found})
    report.write_json(path, results)
  own = {name: {options["method"]: figures} for name, figures in found.held_out.items()}
  titled = {options["method"] if name == row else name: s.figures for name, s in scores.items()}
  _say(report.tables(titled, own), *reader_table.lines(recall.get("retrieval", {})))
  return results


def _read_anew(
  config: Any, folder: pathlib.Path, system: System, lm: FrozenLM
) -> tuple[dict[str, Scores], Results]:
  """The reader's table and the recall of what it reads, on the config's `data.test`."""
  run = experiment.resolve(config)
  job, row = Job(run, lm, folder), run["order"][-1]
  data = job.prepare(MetricsWriter(folder))["stages"][row]["data"]
  asked = system.options | {"data": system.options["data"] | {"test": data["test"]}}
  scores = reader_table.compared(job, {row: dataclasses.replace(system, options=asked)}, lm)
  return scores, {"retrieval": reader_table.retrieval(job, run, lm)}


def predict(config: Any, folder: str | pathlib.Path) -> list[dict[str, Any]]:
  """Answers the questions of `predict.input` (a file, or - for standard input).

  A question is a line of plain text, or a JSON object as in a data file. The answers are printed
  as JSON lines and written to predictions.jsonl; returns them.
  """
  folder = pathlib.Path(folder)
  adapter, options = _open(config, folder)
  data = options["data"]
  questions = open_questions(options["predict"]["input"], data["fields"], data["templates"])
  examples = [questions[index] for index in range(len(questions))]
  if "reader" in options:
    examples = Job(experiment.resolve(config), adapter.lm, folder).read(examples)
  task = question_task(options, adapter.lm, adapter.method)
  check_questions(options, adapter.lm, task, examples, options["predict"]["input"])
  system = System(adapter.method, adapter.trained, adapter.fixed, options)
  rows = prediction_rows(task, examples, answer(system, adapter.lm, task, examples))
  if is_first_host():
    report.write_lines(folder / workdir.PREDICTIONS, rows)
    for row in rows:
      print(json.dumps(row, ensure_ascii=False), flush=True)
  return rows


def export(config: Any, folder: str | pathlib.Path) -> dict[str, str]:
  """Writes the adapter of a complete run to `export.folder` (default: WORKDIR/export).

  `export.format`: `adapter` (adapter.json + adapter.safetensors, which `load_adapter` reads) or
  `peft` (a tuned prompt, which `peft.PeftModel.from_pretrained` reads).
  """
  folder = pathlib.Path(folder)
  adapter, options = _open(config, folder)
  target = pathlib.Path(options["export"]["folder"] or folder / "export")
  kind = options["export"]["format"]
  if kind == "adapter":
    adapter.save(target)
  elif kind == "peft":
    vectors = adapter.trained.get("prompt", {}).get("vectors")
    if set(adapter.trained) != {"prompt"} or vectors.ndim != 2:
      raise UserError(
        f"PEFT has no form for what {options['method']} trains ({', '.join(adapter.trained)}); it"
        " takes one tuned prompt alone: use --config.export.format=adapter"
      )
    sizes = adapter.lm.config
    write_peft_prompt(
      target,
      vectors,
      adapter.lm.name,
      sizes.width,
      sizes.layers,
      sizes.heads,
    )
  else:
    raise UserError(f"export.format is {kind!r}; there are: adapter, peft")
  reader = {"adapter": "frozen_jax.load_adapter", "peft": "peft.PeftModel.from_pretrained"}[kind]
  _say(f"The adapter is in {target}, for {reader}.")
  return {"folder": str(target), "format": kind}


def _stopped_behind(step: str, job: Job) -> Results:
  """What a run gives that ends before its stages: the files made so far."""
  _say(f"Stopped behind {step}, as config.until asks; the files are in {job.steps.folder}.")
  return {"until": step, "files": dict(job.steps.digests)}


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


def _load(options: experiment.Options, mesh: Any) -> FrozenLM:
  model = options["model"]
  lm = load_frozen(model["name"], model["dtype"], mesh, model["quantize"] or None)
  return with_encoder(lm, model)


def _open(config: Any, folder: pathlib.Path) -> tuple[Adapter, experiment.Options]:
  """The adapter of a workdir, with the last stage's options as the command gives them."""
  options = experiment.resolve(config)
  stage = experiment.stage_options(options, options["order"][-1])
  read_stored(folder)  # says what is missing before the model is loaded
  adapter = load_adapter(folder, _load(options, make_mesh(**options["mesh"])))
  trained_with = {
    key: adapter.options[key]
    for key in ("method", "prompt", "recursion", "generator")
    if key in adapter.options
  }
  data = adapter.options["data"]
  told = {key: data[key] for key in ("template", "encoder_length", "tasks") if key in data}
  trained_with["data"] = stage["data"] | told
  return adapter, stage | trained_with


def _initial(init_from: str, lm: FrozenLM) -> Tree:
  """The small trees of `init_from`, by key; the trained ones go before the fixed."""
  if not init_from:
    return {}
  adapter = load_adapter(init_from, lm)
  return {**adapter.fixed, **adapter.trained}


def _results(
  options: experiment.Options,
  lm: FrozenLM,
  systems: dict[str, System],
  scores: Mapping[str, Scores],
  unchanged: bool,
) -> Results:
  """What results.json holds, but for `seconds`."""
  rows = {name: own.figures for name, own in scores.items()}
  name, last = list(systems.items())[-1]
  held = {
    source: {row: own.held_out[source] for row, own in scores.items()}
    for source in last.options["data"]["held_out"]
  }
  baseline = options["baseline"] if options["baseline"] in rows else "zero_shot"
  return {
    "method": last.options["method"],
    "model": lm.name,
    "metrics": rows[name] | {"tokens_per_second": last.history.tokens_per_second},
    "baseline": {"name": baseline} | rows[baseline],
    "rows": rows,
    "held_out": held,
    "frozen_fingerprint": lm.fingerprint,
    "encoder_fingerprint": getattr(lm.encoder, "fingerprint", ""),
    "frozen_unchanged": unchanged,
    "trainable_parameters": _size(last.trained),
    "frozen_parameters": _frozen_size(lm),
    "steps": last.history.steps,
    "stages": {
      key: {
        "steps": system.history.steps,
        "best_step": system.history.best_step,
        "validation_loss": system.history.best_figures.get("loss"),
        "seconds": round(system.history.seconds, 3),
        "tokens_per_second": system.history.tokens_per_second,
        "trainable_parameters": _size(system.trained),
        "checkpoint_bytes": system.history.checkpoint_bytes,
        "examples": dict(system.counts),
      }
      for key, system in systems.items()
    },
    "table": report.tables(
      _titled(rows, systems), {name: _titled(own, systems) for name, own in held.items()}
    ),
  }


def _write_by_task(folder: pathlib.Path, scores: Mapping[str, Scores]) -> None:
  """Adds to by_task.json, {source: {row of the table: figures by data set and template}}."""
  path = folder / workdir.BY_TASK
  tables: dict[str, dict[str, Any]] = workdir.read_json(path) if path.exists() else {}
  for row, own in scores.items():
    for source, table in own.by_task.items():
      tables.setdefault(source, {})[row] = table
  if tables:
    report.write_json(path, tables)


def _titled(rows: Mapping[str, Any], systems: Mapping[str, System]) -> dict[str, Any]:
  """The rows under names that say which method a stage trained."""
  methods = {name: system.method.name for name, system in systems.items()}
  return {f"{n}: {methods[n]}" if n in methods else n: figures for n, figures in rows.items()}


def _frozen_size(lm: FrozenLM) -> int:
  """Frozen parameters of the LM and the encoder, whatever they are quantised to."""
  size = _size(decoder.param_shapes(lm.config))
  return size + (0 if lm.encoder is None else _size(encoder.param_shapes(lm.encoder.config)))


def _size(tree: Tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _say(*lines: str) -> None:
  if is_first_host():
    print(*lines, sep="\n", flush=True)
