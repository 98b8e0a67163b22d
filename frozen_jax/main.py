"""The command: flags, distributed start, dispatch to `frozen_jax.run`, exit status.

    python -m frozen_jax.main --config=configs/recursive.py[:variant]
      [--mode=train|evaluate|predict|export] [--workdir=DIR] [--config.key=value ...]

The only reader of flags. Exit status: 0 done (also when stopped by SIGTERM, after saving); 2 what
the user gave is wrong, one `error:` line on standard error; 1 anything else.
"""

import dataclasses
import difflib
import logging
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from frozen_jax.config import overrides
from frozen_jax.config.config_file import load_config
from frozen_jax.core.errors import Interrupted, UserError, exit_status
from frozen_jax.core.host_memory import keep_freed_memory

MODES = ("train", "evaluate", "predict", "export")
VALUED = ("--config", "--mode", "--workdir")
HELP = """\
Small trained networks around a frozen language model.

  python -m frozen_jax.main --config=configs/NAME.py[:variant] [--mode=MODE] [--workdir=DIR]
    [--config.KEY=VALUE ...]

  --config    the experiment, a file of ./configs; `:smoke` does the same work in about a minute
  --mode      train     run the stages and score them on data.test; run again, it goes on where it
                        was stopped (the default)
              evaluate  score the trained adapter on data.test
              predict   answer the questions of predict.input (a file, or - for standard input),
                        one JSON object a line
              export    write the adapter to export.folder, in the form export.format
  --workdir   where a run keeps everything; default runs/NAME[-variant]
  --config.KEY=VALUE  another value for a key of the experiment; lists are written a,b. One stage
              alone: --config.stages.NAME.KEY=VALUE

Examples:

  python -m frozen_jax.main --config=configs/recursive.py
  python -m frozen_jax.main --config=configs/prompt_tuning.py --workdir=runs/mine \\
    --config.model.name=FOLDER_OR_GGUF --config.data.train=FILE.jsonl --config.train.steps=300
  echo 'What is the capital of Peru?' | \\
    python -m frozen_jax.main --config=configs/recursive.py --mode=predict
"""


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line as read: `argv` has the program's name in front, `config` the overrides in."""

  argv: tuple[str, ...]
  config: ConfigDict
  mode: str
  workdir: str

  def again(self, mode: str) -> str:
    """The same command in another mode, for a shell."""
    kept = [a for a in self.argv[1:] if not a.lstrip("-").startswith(("mode=", "workdir="))]
    arguments = ["python", "-m", "frozen_jax.main", *kept, f"--workdir={self.workdir}"]
    return shlex.join([*arguments, f"--mode={mode}"])


def default_workdir(config_argument: str) -> str:
  """configs/NAME.py:variant -> runs/NAME-variant."""
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
  flags.DEFINE_enum("mode", "train", MODES, "", flag_values=values)
  flags.DEFINE_string("workdir", "", "", flag_values=values)
  flags.DEFINE_boolean("help", False, "", short_name="h", flag_values=values)
  argv = _joined(argv)
  try:
    rest = values(argv, known_only=True)[1:]
  except (flags.Error, ValueError) as error:
    raise UserError(f"{' '.join(str(error).split())}; --help says what there is") from None
  if values.help and not values.config:
    print(HELP)
    return None
  if not values.config:
    raise UserError("no experiment given; add --config=configs/NAME.py (see ./configs)")
  given = [_override(argument) for argument in rest]
  config = load_config(values.config)
  from frozen_jax.run import settings  # imports jax, which takes seconds

  config = settings.complete(config)
  overrides.override(config, given)
  if values.help:
    print(f"{HELP}\nThe keys of {values.config}:\n\n{settings.help_text(config)}")
    return None
  workdir = values.workdir or default_workdir(values.config)
  return Command(tuple(argv), config, values.mode, workdir)


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


def _override(argument: str) -> tuple[str, str]:
  """`--config.key=value` -> (key, value)."""
  name, equals, value = argument.lstrip("-").partition("=")
  if not argument.startswith("-"):
    raise UserError(f"unexpected argument {argument!r}; everything is given as --flag=value")
  if not name.startswith("config."):
    near = difflib.get_close_matches(name, ("config", "mode", "workdir", "help"), n=1)
    meant = f"did you mean --{near[0]}?" if near else "--help says what there is"
    raise UserError(f"unknown flag --{name}; {meant}")
  if not equals:
    raise UserError(f"--{name} has no value; write --{name}=VALUE")
  return name.removeprefix("config."), value


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

  hosts.start()
  from frozen_jax import run as entry

  done = getattr(entry, command.mode)(command.config, command.workdir)
  if command.mode == "train" and hosts.is_first_host() and "metrics" in done:
    print(
      f"The adapter is in {command.workdir}/adapter. Ask it:"
      f" echo 'What is the capital of Peru?' | {command.again('predict')}"
    )


def _stopped_at_the_start(number: int, frame: object) -> None:
  """Ends the process at once: there is nothing to save, and native imports bear no exception."""
  os.write(sys.stderr.fileno(), b"interrupted at step 0; the same command goes on from there\n")
  os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
  """`parse` and `run`, with their outcome as an exit status."""

  def act() -> None:
    arguments = sys.argv if argv is None else argv
    if not {"evaluate", "predict", "export"} & {a.rpartition("=")[2] for a in arguments}:
      signal.signal(signal.SIGTERM, _stopped_at_the_start)  # until a run has its own way to stop
    command = parse(arguments)
    if command is not None:
      run(command)

  try:
    return exit_status(act)
  except Interrupted as stop:
    logging.getLogger("frozen_jax").info("%s; the same command goes on from there", stop)
  except KeyboardInterrupt:
    print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    return 1
  return 0


def _own_standard_output() -> None:
  """Keeps standard output for what we print: what native libraries write there goes to stderr."""
  ours = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


if __name__ == "__main__":
  keep_freed_memory()
  _own_standard_output()
  sys.exit(main())
