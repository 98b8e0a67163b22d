"""What a finished run's adapter is used for: evaluate, predict, export, and asking it."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_questions
from frozen_jax.export.peft import write_peft_prompt
from frozen_jax.run import gated, report, workdir
from frozen_jax.run import options as experiment
from frozen_jax.run.adapter import FOLDER, Adapter, load_adapter, read_stored
from frozen_jax.run.answering import Rows, check_questions, prediction_rows
from frozen_jax.run.candidates import table as candidates_table
from frozen_jax.run.candidates.job import Job as Candidates
from frozen_jax.run.frozen_lm import FrozenLM, load_model
from frozen_jax.run.reader import table as reader_table
from frozen_jax.run.reader.job import Job as Reader
from frozen_jax.run.results import Results, say, write_by_task
from frozen_jax.run.scores import Scores, score
from frozen_jax.run.stages import System, question_task, questions
from frozen_jax.run.two_pass import first_of, replies
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import is_first_host
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.metrics import MetricsWriter


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
  gated.check(experiment.resolve(config), adapter.lm)
  scores, kept, system = _scored_anew(config, folder, system, adapter.lm)
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
  } | kept
  if is_first_host():
    if "gate" in kept:
      gate = {"gate": system.options["gate"]}
      dataclasses.replace(adapter, options={**adapter.options, **gate}).save(folder / FOLDER)
    report.write_lines(folder / workdir.PREDICTIONS, found.predictions)
    write_by_task(folder, {row: found})
    report.write_json(path, results)
  own = {name: {options["method"]: figures} for name, figures in found.held_out.items()}
  titled = {options["method"] if name == row else name: s.figures for name, s in scores.items()}
  say(
    report.tables(titled, own),
    *reader_table.lines(kept.get("retrieval", {})),
    *gated.lines(kept.get("gate", {})),
  )
  return results


def predict(config: Any, folder: str | pathlib.Path) -> Rows:
  """Answers the questions of `predict.input` (a file, or - for standard input).

  A question is a line of plain text, or a JSON object as in a data file. The answers are printed
  as JSON lines and written to predictions.jsonl; returns them.
  """
  folder = pathlib.Path(folder)
  answerer = open_answerer(config, folder)
  options = answerer.system.options
  data, where = options["data"], options["predict"]["input"]
  given = open_questions(where, data["fields"], data["templates"])
  rows = answerer([given[index] for index in range(len(given))], where)
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
    parts = {**adapter.trained, **adapter.fixed}
    if set(parts) != {"prompt"} or vectors.ndim != 2:
      raise UserError(
        f"PEFT has no form for what {options['method']} trains ({', '.join(parts)}); it"
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
  say(f"The adapter is in {target}, for {reader}.")
  return {"folder": str(target), "format": kind}


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
  """A finished run as it answers questions; `job` finds the passages where the run is a reader."""

  system: System
  lm: FrozenLM
  job: Reader | None

  def __call__(self, examples: Sequence[Example], where: str) -> Rows:
    """The rows of predictions.jsonl for questions that come from `where`.

    Raises UserError naming the first question that is too long.
    """
    if self.job is not None:
      examples = self.job.read(examples)
    options = self.system.options
    task = question_task(options, self.lm, self.system.method)
    check_questions(options, self.lm, task, examples, where)
    found = replies(self.system, self.lm, examples)
    return prediction_rows(task, [one.read for one in found], [one.text for one in found])


def open_answerer(config: Any, folder: pathlib.Path) -> Answerer:
  """The finished run of a workdir; UserError where there is none, or it is another LM's."""
  adapter, options = _open(config, folder)
  system = System(adapter.method, adapter.trained, adapter.fixed, options)
  run = experiment.resolve(config)
  return Answerer(system, adapter.lm, Reader(run, adapter.lm, folder) if "reader" in run else None)


def _scored_anew(
  config: Any, folder: pathlib.Path, system: System, lm: FrozenLM
) -> tuple[dict[str, Scores], Results, System]:
  """The rows of the last system on the `data.test`, what else is kept in results.json, and the
  system with its gate, where the config has a budget for one."""
  run, kept = experiment.resolve(config), Results()
  row, most = run["order"][-1], run["evaluate"]["max_examples"]
  reader = Reader(run, lm, folder) if "reader" in run else None
  if "candidates" in run:  # shown as the adapter was tuned to read them
    run["candidates"]["template"] = system.options["candidates"]["template"]
  candidates = Candidates(run, lm, folder) if "candidates" in run else None
  if reader is not None:
    system = _on(system, reader.prepare(MetricsWriter(folder))["stages"][row]["data"])
    kept["retrieval"] = reader_table.retrieval(reader, run, lm)
  asked = functools.partial(questions, system.options)
  if candidates is not None:
    asked = functools.partial(candidates.proposed, first_of(system))
    proposed = asked("test", most)
    read = _on(system, {"test": str(candidates.texts("test"))})
    scores = candidates_table.compared(proposed, {}, {row: read}, lm)
  elif reader is not None:
    scores = reader_table.compared(reader, {row: system}, lm)
  else:
    scores = {row: score(system, lm)}
  if gated.budget_of(run):
    system, scores, kept["gate"] = gated.added(system, lm, run, asked, scores, folder)
  return scores, kept, system


def _on(system: System, data: Mapping[str, str]) -> System:
  """The system with other data."""
  options = system.options | {"data": system.options["data"] | data}
  return dataclasses.replace(system, options=options)


def _open(config: Any, folder: pathlib.Path) -> tuple[Adapter, experiment.Options]:
  """The adapter of a workdir, with the last stage's options as the command gives them."""
  options = experiment.resolve(config)
  stage = experiment.stage_options(options, options["order"][-1])
  read_stored(folder)  # says what is missing before the model is loaded
  adapter = load_adapter(folder, load_model(options["model"], make_mesh(**options["mesh"])))
  trained_with = {
    key: adapter.options[key]
    for key in ("method", "prompt", "recursion", "generator", "candidates", "gate")
    if key in adapter.options
  }
  data = adapter.options["data"]
  told = {key: data[key] for key in ("template", "encoder_length", "tasks") if key in data}
  trained_with["data"] = stage["data"] | told
  return adapter, stage | trained_with
