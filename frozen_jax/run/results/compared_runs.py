"""Records and predictions of runs as a comparison reads them (`run.comparison`)."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import Row, parse_row
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.reading import user_read_errors
from frozen_jax.core.seed_folders import workdir_name
from frozen_jax.core.text_file import numbered_lines
from frozen_jax.evaluation.gains import EXACT_MATCH, LOSS, QuestionScores
from frozen_jax.run.results.gains import question_scores
from frozen_jax.run.results.records import FORMAT, Record, rows_with_training
from frozen_jax.run.results.report import COLUMNS
from frozen_jax.run.workdir import CONFIG, EVALUATIONS, PREDICTIONS, RESULTS, read_workdir_json

DIFFERENCE = "difference"
_RECORD_TYPES = {
  "method": str,
  "model": str,
  "test": str,
  "seed": int,
  "units": dict,
  "table": dict,
}

QuestionKey = tuple[str, str]  # id, input


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A metric or a difference over runs.

  n               runs; None for a difference between groups of unequal size
  standard_error  over runs; None for one run and between groups
  low, high       the 95% interval over test questions; of one run as in its record, of a
                  difference between groups, for which the runs of each are averaged by question,
                  and of a gain over runs and questions
  """

  n: int | None
  mean: float
  standard_error: float | None = None
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """A record and the files next to it.

  path         as given
  folder       of its results.json; None for a file of another name, which has no neighbours
  name         of its workdir, FOLDER/seed_N for one of several seeds, WORKDIR/NAME for an
               evaluation; the path where that is not unique
  evaluation   name of the evaluation, empty for the record of a training
  config       of the workdir; None without config.json
  """

  path: AnyPath
  folder: AnyPath | None
  name: str
  evaluation: str
  config: Mapping[str, Any] | None
  record: Record

  @property
  def last_row(self) -> str:
    return self.record["table"]["metrics"]


def read_run(path: AnyPath) -> Run:
  """The run of a workdir, an evaluation's folder or a results.json file.

  Raises UserError for a file that is missing, damaged or of another format.
  """
  file = path / RESULTS if path.is_dir() else path
  record = _read_object(file)
  _check_record(file, record)
  if file.name != RESULTS:
    return Run(path, None, file.name, "", None, record)
  folder = file.parent.resolve()
  evaluation = folder.name if folder.parent.name == EVALUATIONS else ""
  workdir = folder.parents[1] if evaluation else folder
  config = next((c for c in (folder / CONFIG, workdir / CONFIG) if c.exists()), None)
  name = workdir_name(workdir) + (f"/{evaluation}" if evaluation else "")
  values = None if config is None else _read_object(config)
  return Run(path, folder, name, evaluation, values, record)


@dataclasses.dataclass(frozen=True)
class Answered:
  """What the rows of a table have of a question, as predictions.jsonl has it.

  row: of the last row; its `predictions` and `losses` are those of the others.
  """

  last_row: str
  row: Row

  def of(self, name: str) -> QuestionScores | None:
    """The scores of the table's row of that name; None where it has none."""
    if name == self.last_row:
      return question_scores(self.row)
    if name not in self.row.get("predictions", {}):
      return None
    own = {"prediction": self.row["predictions"][name], "loss": None}
    if name in self.row.get("losses", {}):
      own["loss"] = self.row["losses"][name]
    return question_scores(self.row | own)


def answered_questions(run: Run) -> dict[QuestionKey, Answered] | str:
  """What predictions.jsonl has of each question; or, as text, why there is nothing.

  Raises UserError for a damaged file.
  """
  if "exact_match_low" not in run.record["metrics"]:
    return f"{run.name} has no exact match of single questions"
  if run.folder is None or not (run.folder / PREDICTIONS).exists():
    return f"{run.name} has no {PREDICTIONS}"
  file = run.folder / PREDICTIONS
  written = run.record.get("predictions_sha256")
  if written is not None and written != hashlib.sha256(file.read_bytes()).hexdigest():
    return _replaced(run)
  found: dict[QuestionKey, Answered] = {}
  for number, _, line in numbered_lines(file):
    row = parse_row(line, f"{file}, line {number}")
    texts = [row.get(name) for name in ("id", "input", "prediction")]
    if all(isinstance(text, str) for text in texts) and not row.get("answers"):
      return _replaced(run)
    try:
      question, answered = (row["id"], row["input"]), Answered(run.last_row, row)
      for name in (run.last_row, *row.get("predictions", {})):
        answered.of(name)
    except (AttributeError, KeyError, TypeError) as error:
      reason = f"{type(error).__name__}: {error}"
      raise UserError(f"{file}, line {number} is damaged ({reason}); score the run again") from None
    if question in found:
      return f"{run.name} has the question with id {row['id']} twice"
    found[question] = answered
  if found and len(found) != run.record["metrics"].get("examples", len(found)):
    return _replaced(run)
  return found or f"{run.name} has no predictions"


def last_row_matches(run: Run) -> dict[QuestionKey, float] | str:
  """Exact match of the last row in percent, by question; or, as text, why there is none."""
  found = answered_questions(run)
  if isinstance(found, str):
    return found
  return {question: question_scores(one.row).exact_match for question, one in found.items()}


def _replaced(run: Run) -> str:
  """What is said of predictions that are not those that the record was made of."""
  return (
    f"{PREDICTIONS} of {run.name} no longer holds what was scored, but the answers of a later"
    " --mode=predict; score the run again with --mode=evaluate and compare that folder"
  )


def _read_object(path: AnyPath) -> dict[str, Any]:
  with user_read_errors(path):
    value = read_workdir_json(path)
  if not isinstance(value, dict):
    raise UserError(f"{path} is damaged (no JSON object); restore it or train again")
  return value


def _check_record(path: AnyPath, record: Record) -> None:
  """UserError for a record of another format, or without what a comparison reads."""
  if not {"format", "metrics", "table"} & record.keys():
    raise UserError(
      f"{path} is no record of a run; give a workdir, an evaluation's folder or a {RESULTS}"
    )
  version = record.get("format", 1)
  if type(version) is not int or version != FORMAT:
    raise UserError(
      f"{path} has format {version!r}, and this version reads {FORMAT}; score the run again with"
      " --mode=evaluate, or use the version that wrote it"
    )
  try:
    for key, kind in _RECORD_TYPES.items():
      if type(record.get(key, kind())) is not kind:
        raise TypeError(f"{key} is {record[key]!r}")
    _ = record["method"], record["model"], record["seed"], record["table"]["metrics"]
    by_kind = record.get("by_kind", {}).values()
    tables = [rows_with_training(record), *record.get("held_out", {}).values()]
    tables += [table for own in by_kind for table in (own["rows"], own["paired"])]
    figures = [row for table in tables for row in table.values()]
    gains = [
      part for gain in record.get("gains", ()) for part in (gain, *gain.get("by_kind", {}).values())
    ]
    figures += [gain[name] for gain in gains for name in (EXACT_MATCH, LOSS) if name in gain]
    _ = [(gain["what"], gain["row"], gain["against"]) for gain in record.get("gains", ())]
    for row in [*figures, *record.get("paired", {}).values()]:
      for name in (*COLUMNS, DIFFERENCE):
        for key in (name, f"{name}_low", f"{name}_high"):
          if type(row.get(key, 0)) not in (int, float):
            raise TypeError(f"{key} is {row[key]!r}")
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} is damaged ({reason}); restore it or score the run again") from None
