"""What a finished run's adapter is used for: evaluate, predict, export, and asking it."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.data.examples import Example
from frozen_jax.data.sources import open_questions
from frozen_jax.export.peft import write_peft_prompt
from frozen_jax.run import options as experiment
from frozen_jax.run import report, workdir
from frozen_jax.run.adapter import Adapter, load_adapter, read_stored
from frozen_jax.run.answering import Rows, answer, check_questions, prediction_rows
from frozen_jax.run.frozen_lm import FrozenLM, load_model
from frozen_jax.run.reader import table as reader_table
from frozen_jax.run.reader.job import Job
from frozen_jax.run.results import Results, say, write_by_task
from frozen_jax.run.scores import Scores, score
from frozen_jax.run.stages import System, question_task
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
    write_by_task(folder, {row: found})
    report.write_json(path, results)
  own = {name: {options["method"]: figures} for name, figures in found.held_out.items()}
  titled = {options["method"] if name == row else name: s.figures for name, s in scores.items()}
  say(report.tables(titled, own), *reader_table.lines(recall.get("retrieval", {})))
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
  questions = open_questions(where, data["fields"], data["templates"])
  rows = answerer([questions[index] for index in range(len(questions))], where)
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
  say(f"The adapter is in {target}, for {reader}.")
  return {"folder": str(target), "format": kind}


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
  """A finished run as it answers questions; `job` finds the passages where the run is a reader."""

  system: System
  lm: FrozenLM
  job: Job | None

  def __call__(self, examples: Sequence[Example], where: str) -> Rows:
    """The rows of predictions.jsonl for questions that come from `where`.

    Raises UserError naming the first question that is too long.
    """
    if self.job is not None:
      examples = self.job.read(examples)
    options = self.system.options
    task = question_task(options, self.lm, self.system.method)
    check_questions(options, self.lm, task, examples, where)
    return prediction_rows(task, examples, answer(self.system, self.lm, task, examples))


def open_answerer(config: Any, folder: pathlib.Path) -> Answerer:
  """The finished run of a workdir; UserError where there is none, or it is another LM's."""
  adapter, options = _open(config, folder)
  system = System(adapter.method, adapter.trained, adapter.fixed, options)
  run = experiment.resolve(config)
  return Answerer(system, adapter.lm, Job(run, adapter.lm, folder) if "reader" in run else None)


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


def _open(config: Any, folder: pathlib.Path) -> tuple[Adapter, experiment.Options]:
  """The adapter of a workdir, with the last stage's options as the command gives them."""
  options = experiment.resolve(config)
  stage = experiment.stage_options(options, options["order"][-1])
  read_stored(folder)  # says what is missing before the model is loaded
  adapter = load_adapter(folder, load_model(options["model"], make_mesh(**options["mesh"])))
  trained_with = {
    key: adapter.options[key]
    for key in ("method", "prompt", "recursion", "generator")
    if key in adapter.options
  }
  data = adapter.options["data"]
  told = {key: data[key] for key in ("template", "encoder_length", "tasks") if key in data}
  trained_with["data"] = stage["data"] | told
  return adapter, stage | trained_with
