"""The arguments of the tools: a parser whose errors are one line, and `--config`."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from frozen_jax.config.config_file import load_config
from frozen_jax.config.overrides import override
from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.run.settings import resolve_run, with_defaults
from frozen_jax.sharding.mesh import AXES


class Parser(argparse.ArgumentParser):
  """Raises UserError, a message of one line, for invalid arguments."""

  def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
    """As argparse; of an unknown flag the nearest one is named, whatever else is missing."""
    known = list(self._option_string_actions)
    for argument in sys.argv[1:] if args is None else args:
      name = argument.partition("=")[0]
      if name.startswith("--") and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        meant = f"did you mean {near[0]}?" if near else "--help says what there is"
        raise UserError(f"unknown flag {name}; {meant}")
    return super().parse_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}; --help says what there is")


def add_config(parser: Parser) -> None:
  """Adds `--config`, whose keys may be overridden by `--config.KEY=VALUE` (`parse_with_config`)."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE[:variant]",
    help="the experiment; --config.KEY=VALUE gives a key of it another value",
  )


def parse_with_config(
  parser: Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, RunSettings]:
  """The arguments after the program's name, and the settings of the run that --config names."""
  keys = [argument for argument in argv if argument.startswith("--config.")]
  given = parser.parse_args([argument for argument in argv if argument not in keys])
  assignments = [key.removeprefix("--config.").partition("=") for key in keys]
  if bare := [name for name, equals, _ in assignments if not equals]:
    raise UserError(f"--config.{bare[0]} has no value; write --config.{bare[0]}=VALUE")
  config = with_defaults(load_config(given.config))
  override(config, [(name, value) for name, _, value in assignments])
  return given, resolve_run(config)


def parse_mesh(text: str) -> dict[str, int]:
  """`data=1,fsdp=2,tensor=4` -> the sizes of the axes that it names; UserError for other text."""
  parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
  if any(axis not in AXES or not size.isdecimal() for axis, _, size in parts):
    raise UserError(f"--mesh={text} is no mesh; write for example --mesh=data=1,fsdp=2,tensor=4")
  if len({axis for axis, _, _ in parts}) < len(parts):
    raise UserError(f"--mesh={text} gives the size of an axis twice; give each axis once")
  return {axis: int(size) for axis, _, size in parts}


def positive(text: str) -> int:
  """A type of argparse: a whole number of 1 or more."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no such number; give a whole number of 1 or more"
    )
  return int(text)
