"""A run that is interrupted at any place: `python -m benchmarks.interruptions`.

A run of two stages on a tiny random model (`configs/recursive.py:smoke`, stages prompt and
baseline), interrupted once at each of twelve places by SIGTERM, SIGINT, SIGKILL and a disk that
fills up, and then started again by the same command. For each of these 48 cells there is a row: the
exit status, what was said, what is left, how many steps were done twice, and whether in the end
metrics.jsonl, the predictions and the adapters are, byte for byte, those of a run that nothing
interrupted, and results.json but for its times. Ends with status 1 where a cell is not as it should
be:

  SIGTERM, SIGINT  status 0, `interrupted at step N`, the step of the newest checkpoint
  SIGKILL          ended by the signal; no more steps are lost than from one checkpoint to the next
  disk full        status 2 and one `error:` line
  all              a run started again ends with status 0 and the same bits

The disk is a real one, of `--megabytes` of memory, that holds all that the run reads and writes; it
is mounted in a namespace of its own (`unshare`, Linux). `--json=FILE` also writes the rows,
`--places` and `--events` choose some. Needs `pip install -e '.[test]'`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import interrupted
from benchmarks.interrupted import EVENTS, FULL, PLACES, SIGNALS
from benchmarks.training_step import machine
from frozen_jax.core.user_path import user_path
from frozen_jax.training.checkpoint_folders import (
  CHECKPOINTS,
  complete_checkpoints,
  step_and_repeat,
)
from frozen_jax.training.metrics import read_metrics
from tests.processes import environment

STAGES, STEPS, EVERY = ("prompt", "baseline"), 5, 2  # EVERY: steps from checkpoint to checkpoint
COLD = "compiling the first step"  # the place that needs programs which are not yet compiled
# What may differ: a checkpoint holds how many seconds it took, as text.
CLOCK = ("created", "command", "commit", "seconds", "tokens_per_second", "checkpoint_bytes")
HALF_WRITTEN = re.compile(r"(?P<of>\d+)\.orbax-checkpoint-tmp|\.(?P<file>\w+\.\w+)\.\w+")
MOUNTED = "--mounted"


@dataclasses.dataclass
class Row:
  """A cell: `status` and `said` of the interrupted run, `left` in its workdir, `wrong` in all."""

  place: str
  event: str
  status: int
  said: str
  left: str
  repeated: int  # steps
  resumed_status: int
  differs: list[str]  # what is not as in the run that nothing interrupted
  wrong: list[str]


class Trial:
  """The run on its own disk: its inputs, its command, and what it should come to."""

  def __init__(self, disk: pathlib.Path):
    self.disk, self.compiled = disk, disk / "compiled"
    self.workdir, self.log = disk / "run", disk.with_name("log")
    _write_inputs(disk)
    status = self._run(None)
    if status:
      raise SystemExit(f"the run that nothing interrupts ends with {status}\n{self._said()[1]}")
    self.whole = outcome(self.workdir)
    shutil.rmtree(self.workdir)

  def row(self, place: str, event: str) -> Row:
    """Interrupts a run, frees the disk and starts it again."""
    status = self._run((place, event))
    said, text = self._said()
    left, repeated, newest = look(self.workdir)
    (self.disk / interrupted.FILLER).unlink(missing_ok=True)
    resumed = self._run(None)
    differs = ["all"] if resumed else self._differing()
    row = Row(place, event, status, said, left, repeated, resumed, differs, [])
    row.wrong += judged(row, text, newest)
    if resumed:
      row.wrong.append(f"started again it says: {self._said()[0]}")
    shutil.rmtree(self.workdir)
    return row

  def _run(self, at: tuple[str, str] | None) -> int:
    compiled = self.compiled
    if at and at[0] == COLD:
      compiled = self.disk / "compiled_cold"
      shutil.rmtree(compiled, ignore_errors=True)
    return interrupted.run(command(self.disk), self.disk, self.log, compiled, at)

  def _differing(self) -> list[str]:
    now = outcome(self.workdir)
    return [name for name, value in self.whole.items() if now[name] != value]

  def _said(self) -> tuple[str, str]:
    """The line that tells the outcome, and everything."""
    text = self.log.read_text().strip().replace(f"{self.disk}/", "")
    lines = text.splitlines() or [""]
    telling = [line for line in lines if line.startswith("error:") or "interrupted at" in line]
    return re.sub(r"^\d\d:\d\d:\d\d ", "", (telling or lines)[-1]), text


def command(disk: pathlib.Path) -> list[str]:
  """The arguments of the run."""
  data = {"train": "train", "validation": "test", "test": "test"}
  return [
    "--config=configs/recursive.py:smoke",
    f"--workdir={disk / 'run'}",
    f"--config.stage_order={','.join(STAGES)}",
    f"--config.model.name={disk / 'model'}",
    *(f"--config.data.{key}={disk / name}.jsonl" for key, name in data.items()),
    *("--config.data.lengths=64", "--config.prompt.length=4", "--config.mesh.data=1"),
    *(f"--config.{where}train.steps={STEPS}" for where in ("", "stages.prompt.")),
    "--config.evaluate.general_text=",
  ]


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a run comes to, but for times: the bytes of files, and the values of results.json."""
  names = ["metrics.jsonl", "predictions.jsonl", "adapter/adapter.safetensors"]
  names += [f"adapters/{stage}/adapter.safetensors" for stage in STAGES]
  files: dict[str, Any] = {name: (workdir / name).read_bytes() for name in names}
  return files | {
    "results.json": _without_times(json.loads((workdir / "results.json").read_text()))
  }


def _without_times(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {key: _without_times(own) for key, own in value.items() if key not in CLOCK}


def look(workdir: pathlib.Path) -> tuple[str, int, int]:
  """What is left in a workdir, how many steps of it will be done again, and its newest step."""
  if not workdir.is_dir():
    return "nothing", 0, 0
  logged, parts, repeated, newest = _logged(workdir), [], 0, 0
  for stage in STAGES:
    saved = [
      step_and_repeat(path)[0] for path in complete_checkpoints(workdir / CHECKPOINTS / stage)
    ]
    newest = saved[-1] if saved else newest
    repeated += max(logged.get(stage, 0) - (saved[-1] if saved else 0), 0)
    if saved:
      parts.append(f"{stage} at {', '.join(map(str, saved))}")
  parts += [
    name
    for name in ("predictions.jsonl", "report.png", "results.json")
    if (workdir / name).exists()
  ]
  half = [HALF_WRITTEN.fullmatch(path.name) for path in workdir.rglob("*")]
  parts += sorted({f"half-written {match['of'] or match['file']}" for match in half if match})
  return "; ".join(parts) or "no checkpoint", repeated, newest


def _logged(workdir: pathlib.Path) -> dict[str, int]:
  """The last training step of each stage in metrics.jsonl."""
  lines = [line for line in read_metrics(workdir) if line["split"] == "train"]
  return {line["stage"]: line["step"] for line in lines}


def judged(row: Row, text: str, newest: int) -> list[str]:
  """What is not as it should be. text: all that the interrupted run printed."""
  wanted = {"SIGKILL": -SIGNALS["SIGKILL"], FULL: 2}.get(row.event, 0)
  errors = [line for line in text.splitlines() if line.startswith("error:")]
  found = {
    f"status {row.status}, not {wanted}": row.status != wanted,
    "a traceback": "Traceback" in text,
    f"{len(errors)} error lines": len(errors) != (row.event == FULL),
    f"it says another step than {newest}": row.event in ("SIGTERM", "SIGINT")
    and f"interrupted at step {newest};" not in text,
    "too many steps are lost": row.repeated > EVERY,
    f"other {', '.join(row.differs)}": bool(row.differs),
    "it was not interrupted": "results.json" in row.left.split("; "),
  }
  return [what for what, is_so in found.items() if is_so]


def markdown(rows: Sequence[Row]) -> str:
  """The table, a line a cell."""
  lines = ["| place | event | status | says | left | steps again | same bits |", "|---" * 7 + "|"]
  for row in rows:
    said = row.said if row.event != "SIGKILL" else ""
    cells = [row.place, row.event, str(row.status), said, row.left, str(row.repeated)]
    cells.append("; ".join(row.wrong) or "yes")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _write_inputs(disk: pathlib.Path) -> None:
  """A tiny random model with a tokenizer, and a few questions."""
  # Here, as the processes of the runs import this module too, and need no torch.
  from tests.run.conftest import CITIES, COUNTRIES, make_model, make_tokenizer

  tokenizer = make_tokenizer()
  make_model(len(tokenizer)).save_pretrained(disk / "model")
  tokenizer.save_pretrained(disk / "model")
  rows = [
    {"question": f"What is the capital of {country}?", "answers": [city]}
    for country, city in zip(COUNTRIES, CITIES, strict=False)
  ]
  for name, count in (("train", len(rows)), ("test", 4)):
    text = "".join(json.dumps(row) + "\n" for row in rows[:count])
    (disk / f"{name}.jsonl").write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  names = lambda text: text.split(",")
  parser.add_argument("--places", type=names, default=list(PLACES), help="some, with commas")
  parser.add_argument("--events", type=names, default=list(EVENTS), help="some, with commas")
  parser.add_argument("--megabytes", type=int, default=128, help="of the disk")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  parser.add_argument(MOUNTED, action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  for given, known in ((options.places, PLACES), (options.events, EVENTS)):
    if unknown := [name for name in given if name not in known]:
      parser.error(f"there is no {', '.join(unknown)}; there are: {', '.join(known)}")
  if FULL in options.events and not options.mounted:
    _start_in_namespace(sys.argv[1:] if arguments is None else list(arguments))
  with tempfile.TemporaryDirectory() as folder:
    rows = _rows(options, pathlib.Path(folder) / "disk")
  print(markdown(rows))
  if options.json:
    written = {"machine": machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    options.json.write_text(json.dumps(written, indent=2) + "\n")
  if wrong := [f"{row.place}, {row.event}" for row in rows if row.wrong]:
    raise SystemExit(f"{len(wrong)} of {len(rows)} cells are not right: {'; '.join(wrong)}")


def _start_in_namespace(arguments: list[str]) -> None:
  """This program again where it may mount; ends the program where that cannot be had."""
  unshare = ["unshare", "--user", "--map-root-user", "--mount"]
  try:
    subprocess.run([*unshare, "true"], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    raise SystemExit(
      f"no disk can be mounted here ({error}); leave {FULL} out of --events"
    ) from None
  here = [sys.executable, "-m", "benchmarks.interruptions", *arguments, MOUNTED]
  os.execvp("unshare", [*unshare, *here])


def _rows(options: argparse.Namespace, disk: pathlib.Path) -> list[Row]:
  disk.mkdir()
  if options.mounted:
    size = f"size={options.megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=True)
  try:
    variables = environment(
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      JAX_COMPILATION_CACHE_DIR=str(disk / "compiled"),
      FROZEN_JAX_CACHE=str(disk / "cache"),
      MPLCONFIGDIR=str(disk / "matplotlib"),
      TMPDIR=str(disk),
    )
    os.environ.update(variables)
    trial, rows = Trial(disk), []
    for place in options.places:
      for event in options.events:
        rows.append(trial.row(place, event))
        print(dataclasses.asdict(rows[-1]), file=sys.stderr, flush=True)
    return rows
  finally:
    if options.mounted:
      subprocess.run(["umount", "--lazy", disk], check=True)


if __name__ == "__main__":
  main()
