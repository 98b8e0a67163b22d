"""The command: flags, distributed start, dispatch to `frozen_jax.run`, exit status.

    python -m frozen_jax.main --config=configs/recursive.py[:variant]
      [--mode=train|evaluate|predict|export] [--workdir=DIR] [--config.key=value ...]

The only reader of flags. Exit status: 0 done (also when stopped by SIGTERM, after saving); 2 what
the user gave is wrong, one `error:` line on standard error; 1 anything else.
"""

import logging
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from frozen_jax.core.errors import Interrupted, UserError

MODES = ("train", "evaluate", "predict", "export")

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="the experiment: configs/NAME.py[:variant]; see --config.key=value above."
)
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  MODES,
  "train: run the stages (a rerun resumes) and evaluate; evaluate: score the trained adapter on"
  " data.test; predict: answer the questions of --config.predict.input (a file, or - for standard"
  " input), one JSON object a line; export: write the adapter to --config.export.folder.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "where a run keeps everything; default runs/NAME[-variant]."
)


def default_workdir(config_argument: str) -> str:
  """configs/NAME.py:variant -> runs/NAME-variant."""
  path, _, variant = config_argument.partition(":")
  name = pathlib.PurePath(path).stem
  return str(pathlib.PurePath("runs", f"{name}-{variant}" if variant else name))


def _config_argument(argv: Sequence[str]) -> str:
  for index, argument in enumerate(argv):
    name, equals, value = argument.lstrip("-").partition("=")
    if name == "config":
      return value if equals else (argv[index + 1] if index + 1 < len(argv) else "")
  return ""


def _parse(argv: Sequence[str]) -> None:
  """Reads the flags; whatever the user got wrong in them becomes a UserError."""
  argument = _config_argument(argv)
  if not argument and not any(a.startswith(("--help", "-h")) for a in argv):
    raise UserError("no experiment given; add --config=configs/NAME.py (see configs/)")
  path = argument.partition(":")[0]
  if path and not pathlib.Path(path).is_file():
    near = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.py")))
    raise UserError(f"no such config: {path}; there are: {near or 'none in ./configs'}")
  try:
    rest = flags.FLAGS(list(argv))
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    reason = " ".join(str(error).strip("'\"").split())
    raise UserError(f"{reason}; --help and the config's file list what there is") from None
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; everything is given as --flag=value")


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


def run(argv: Sequence[str]) -> None:
  """Parses `argv` (with the program's name first) and does what it says."""
  _parse(argv)
  _log_above_bars()
  config = _CONFIG.value
  workdir = _WORKDIR.value or default_workdir(_config_argument(argv))
  from frozen_jax.sharding import hosts  # jax starts here, after the flags are known to be good

  hosts.start()
  from frozen_jax import run as entry

  getattr(entry, _MODE.value)(config, workdir)
  if _MODE.value == "train" and hosts.is_first_host():
    print(
      f"The adapter is in {workdir}/adapter. Ask it: echo 'What is the capital of"
      f" Peru?' | python -m frozen_jax.main --config={_config_argument(argv)} --workdir={workdir}"
      " --mode=predict"
    )


def main(argv: Sequence[str] | None = None) -> int:
  """`run`, with its outcome as an exit status."""
  try:
    run(sys.argv if argv is None else argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except Interrupted as stop:
    logging.getLogger("frozen_jax").info("%s", stop)
  return 0


if __name__ == "__main__":
  sys.exit(main())
