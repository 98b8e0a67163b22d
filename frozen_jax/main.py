"""The command: flags, distributed start, dispatch to `frozen_jax.run`, exit status.

    frozen-jax --config=NAME[:variant] (or python -m frozen_jax, python -m frozen_jax.main)
      [--mode=train|evaluate|predict|export] [--workdir=DIR] [--config.key=value ...]

The only reader of flags. Exit status: 0 done (also when stopped by SIGTERM or Ctrl-C, which leaves
all that is written whole); 2 what the user gave is wrong, one `error:` line on standard error; 1
anything else.
"""

from frozen_jax.core import interruption

if __name__ == "__main__":
  interruption.note_signals()  # what is imported below takes a while; `main` then asks for them

import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from frozen_jax.config import config_file, overrides
from frozen_jax.core import files, stalled
from frozen_jax.core.compilation_cache import enable_compilation_cache
from frozen_jax.core.errors import Interrupted, UserError, exit_status
from frozen_jax.core.host_memory import keep_freed_memory, wait_for_each_program
from frozen_jax.core.streams import own_streams
from frozen_jax.core.user_path import user_path
from frozen_jax.core.version import __version__
from frozen_jax.sharding import peers
from frozen_jax.sharding.cluster_environment import quiet_native_log
from frozen_jax.text.hidden_torch import hide_torch
from frozen_jax.training.checkpoint_folders import saved_step

MODES = ("train", "evaluate", "predict", "export")
FLAGS = ("config", "mode", "workdir", "help", "version")
VALUED = ("--config", "--mode", "--workdir")
_OF_ABSL = ("flagfile", "undefok")  # which absl takes by itself
# What is said after "interrupted ...": of a training, and of the other modes.
GOES_ON = "; the same command goes on from there"
STARTS_ANEW = "; nothing is left half written, the same command starts anew"
HELP = """\
Small trained networks around a frozen language model.

  frozen-jax --config=NAME[:variant] [--mode=MODE] [--workdir=DIR] [--config.KEY=VALUE ...]

  --config    the experiment: a name of the list below, or a file of yours like those of configs/;
              `:smoke` does the same work in a minute or two
  --mode      train     run the stages and score them on data.test; run again, it goes on where it
                        was stopped (the default)
              evaluate  score the trained adapter on data.test
              predict   answer the questions of predict.input (a file, or - for standard input),
                        one JSON object a line
              export    write the adapter to export.folder, in the form export.format
  --workdir   where a run keeps everything; default runs/NAME[-variant]
  --config.KEY=VALUE  another value for a key of the experiment; lists are written a,b. One stage
              alone: --config.stages.NAME.KEY=VALUE
  --help      this; with --config=NAME also every key of that experiment
  --version   the version

`python -m frozen_jax` is the same command. Examples:

  frozen-jax --config=recursive
  frozen-jax --config=prompt_tuning --workdir=runs/mine \\
    --config.model.name=FOLDER_OR_GGUF --config.data.train=FILE.jsonl --config.train.steps=300
  echo 'What is the capital of Peru?' | frozen-jax --config=recursive --mode=predict
"""


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line as read: `config` has the overrides in, `notes` are said before it runs."""

  config: ConfigDict
  mode: str
  workdir: str
  notes: tuple[str, ...] = ()


def default_workdir(config_argument: str) -> str:
  """NAME:variant or configs/NAME.py:variant -> runs/NAME-variant."""
  path, _, variant = config_argument.partition(":")
  name = pathlib.PurePath(path).stem
  return str(pathlib.PurePath("runs", f"{name}-{variant}" if variant else name))


def parse(argv: Sequence[str]) -> Command | None:
  """Reads `argv` (with the program's name first); None where help was asked for, and printed.

  Raises UserError for whatever the user got wrong in it.
  """
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  flags.DEFINE_string("config", "", "", flag_values=values)
  flags.DEFINE_string("mode", "train", "", flag_values=values)
  flags.DEFINE_string("workdir", "", "", flag_values=values)
  flags.DEFINE_boolean("help", False, "", short_name="h", flag_values=values)
  flags.DEFINE_boolean("version", False, "", flag_values=values)
  joined = _joined(argv)
  for argument in joined[1:]:
    if argument.lstrip("-").partition("=")[0] in _OF_ABSL:
      _override(argument, "")
  try:
    rest = values(joined, known_only=True)[1:]
  except (flags.Error, ValueError) as error:
    raise UserError(f"{' '.join(str(error).split())}; --help says what there is") from None
  if values.mode not in MODES:
    near = difflib.get_close_matches(values.mode, MODES, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"flag --mode={values.mode}{meant}; it is one of {', '.join(MODES)}")
  if values.version:
    print(f"frozen_jax {__version__}")
    return None
  given = [_override(argument, values.config) for argument in rest]
  if values.help and not values.config and not given:
    print(f"{HELP}\n{_experiments_text()}")
    return None
  if not values.config:
    names = ", ".join(config_file.experiments())
    raise UserError(f"no experiment given; add --config=NAME, one of {names}")
  config = _complete(values.config)
  overrides.override(config, given)
  if values.help:
    from frozen_jax.run import settings

    print(f"{HELP}\nThe keys of {values.config}:\n\n{settings.help_text(config)}")
    return None
  if values["workdir"].present and not values.workdir:
    raise UserError("flag --workdir is empty; give a folder, or leave the flag out for the default")
  workdir = str(user_path(values.workdir or default_workdir(values.config)))
  return Command(config, values.mode, workdir, _notes(config, given))


def _complete(config: str) -> ConfigDict:
  """The config of an experiment, with all defaults."""
  loaded = config_file.load_config(config)
  from frozen_jax.run import settings  # imports jax, which takes seconds

  return settings.with_defaults(loaded)


def _experiments_text() -> str:
  """A line for each experiment, of at most 100 columns."""
  lines = config_file.first_lines()
  width = max(map(len, lines), default=0) + 2
  return "Experiments:\n\n" + "\n".join(
    f"  {name:<{width}}{textwrap.shorten(line, 98 - width, placeholder=' ...')}".rstrip()
    for name, line in lines.items()
  )


def _notes(config: ConfigDict, given: Sequence[tuple[str, str]]) -> tuple[str, ...]:
  """Says which stages keep values of their own for what was given for the run as a whole, and what
  nothing reads.

  Raises UserError for settings that cannot be.
  """
  from frozen_jax.run import early_checks, settings

  settings.resolve_run(config)
  of_stages = overrides.own_values_of_stages(config, given)
  notes = []
  for stage, own in of_stages.items():
    values = ", ".join(
      f"{key}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"
      for key, value in own.items()
    )
    change = f"--config.stages.{stage}.{next(iter(own))}=..."
    notes.append(f"stage {stage} keeps its own {values}; {change} changes it")
  return (*notes, *early_checks.unread(config, given))


def _joined(argv: Sequence[str]) -> list[str]:
  """`--flag value` -> `--flag=value`."""
  joined: list[str] = []
  for argument in argv:
    before = joined[-1] if joined else ""
    takes_one = before in VALUED or (before.startswith("--config.") and "=" not in before)
    if takes_one and not argument.startswith("--"):
      joined[-1] = f"{before}={argument}"
    else:
      joined.append(argument)
  return joined


def _override(argument: str, config: str) -> tuple[str, str]:
  """`--config.key=value` -> (key, value). config: the experiment, for hints; it may be empty."""
  name, equals, value = argument.lstrip("-").partition("=")
  if not argument.startswith("-"):
    meant = _positional(name, equals, config)
    hint = f"did you mean {meant}?" if meant else "everything is given as --flag=value"
    raise UserError(f"unexpected argument {argument!r}; {hint}")
  if not name.startswith("config."):
    meant = _misspelt(name, config)
    raise UserError(
      f"unknown flag --{name}; "
      + (f"did you mean --{meant}?" if meant else "--help says what there is")
    )
  if not equals:
    raise UserError(f"--{name} has no value; write --{name}=VALUE")
  return name.removeprefix("config."), value


def _positional(name: str, equals: str, config: str) -> str:
  """The flag that a word without dashes most likely means, or ""."""
  if equals:
    key = name.removeprefix("config.")
    return f"--{name}=..." if name in FLAGS else f"--config.{_misspelt_key(key, config) or key}=..."
  if mode := difflib.get_close_matches(name, MODES, n=1, cutoff=0.75):
    return f"--mode={mode[0]}"
  path, colon, variant = name.partition(":")
  known = config_file.experiments()
  stem = pathlib.PurePath(path).stem
  if pathlib.Path(path).is_file():
    return f"--config={name}"
  if near := difflib.get_close_matches(stem, known, n=1, cutoff=0.6):
    return f"--config={near[0]}{colon}{variant}"
  return ""


def _misspelt(name: str, config: str) -> str:
  """The flag that a misspelt one, or a key without its `config.`, most likely means, or ""."""
  first, dot, rest = name.partition(".")
  if not dot and (near := difflib.get_close_matches(name.lower(), FLAGS, n=1, cutoff=0.6)):
    return near[0]
  if dot and difflib.get_close_matches(first.lower(), ("config",), cutoff=0.6):
    return f"config.{_misspelt_key(rest, config) or rest}"
  key = _misspelt_key(name, config)
  return key and f"config.{key}"


def _misspelt_key(key: str, config: str) -> str:
  try:
    return overrides.nearest_key(_complete(config or "prompt_tuning"), key)
  except UserError:  # no such experiment: that is said once the flags are right
    return ""


class _AboveBars(logging.Handler):
  """Writes a record on a line of its own, above whatever progress bar is being drawn."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.write(self.format(record), file=sys.stderr)


def _log_above_bars() -> None:
  """Our own messages from INFO on; those of libraries from WARNING on."""
  handler = _AboveBars()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
  logging.getLogger("frozen_jax").setLevel(logging.INFO)


def run(command: Command) -> None:
  """Does what a command says."""
  _log_above_bars()
  from frozen_jax.sharding import hosts  # jax starts here, after the flags are known to be good

  wait_for_each_program()
  hosts.start()
  with peers.watched(), stalled.watched(command.config.data.timeout, peers.end):
    if hosts.is_first_host():
      for note in command.notes:
        logging.getLogger("frozen_jax").info("%s", note)
    from frozen_jax import run as entry
    from frozen_jax.run.results import report

    done = getattr(entry, command.mode)(command.config, command.workdir)
    if command.mode == "train" and hosts.is_first_host() and "metrics" in done:
      report.say(*report.closing_tip(command.workdir))


def _stop_at_once(argv: Sequence[str]) -> Callable[[], None]:
  """What a signal does while there is nothing to save: it ends the process.

  It raises nothing: native code that is being imported bears no exception.
  """
  given = dict(argument.lstrip("-").partition("=")[::2] for argument in _joined(argv[1:]))

  def stop() -> None:
    folder = given.get("workdir") or default_workdir(given.get("config", ""))
    step = None
    if given.get("mode", "train") == "train":
      with contextlib.suppress(UserError):  # of a home folder that does not exist
        step = saved_step(user_path(folder))
    files.remove_unfinished()
    with contextlib.suppress(OSError):
      os.write(2, f"{_said(Interrupted(step))}\n".encode())
    os._exit(0)

  return stop


def _said(stop: Interrupted) -> str:
  return f"{stop}{STARTS_ANEW if stop.step is None else GOES_ON}"


def main(argv: Sequence[str] | None = None) -> int:
  """`parse` and `run`, with their outcome as an exit status."""
  return _outcome(sys.argv if argv is None else argv)[0]


def _outcome(arguments: Sequence[str]) -> tuple[int, bool]:
  """The exit status, and whether the command was interrupted."""

  def act() -> None:
    command = parse(arguments)
    if command is not None:
      run(command)

  stop = _stop_at_once(arguments)
  with interruption.handled_by(stop), interruption.ended_by(stop):  # or as the run itself stops
    if interruption.requested():
      stop()
    try:
      return exit_status(act), False
    except Interrupted as interrupted:
      files.remove_unfinished()
      logging.getLogger("frozen_jax").info("%s", _said(interrupted))
      return 0, True


def program() -> int:
  """The whole process: `main` with its own settings for memory, imports, compiling and output."""
  keep_freed_memory()
  hide_torch()
  enable_compilation_cache()
  quiet_native_log()
  own_streams()
  try:
    status, exits_now = _outcome(sys.argv)
  except Exception:
    if not peers.is_watched():
      raise
    traceback.print_exc()
    status, exits_now = 1, True
  interruption.ignore()  # the interpreter's own end must not change the exit status
  # That end would wait for threads, such as those of a download or of data that has stalled, and
  # for the other processes of the run.
  if exits_now or status:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


if __name__ == "__main__":
  sys.exit(program())
