"""A config file and its variants: `configs/NAME.py[:variant]`. Imports no jax."""

import pathlib
import runpy

from ml_collections import ConfigDict

from frozen_jax.core.errors import UserError


def load_config(argument: str) -> ConfigDict:
  """FILE[:variant] -> the config that the file's `get_config` gives; UserError where it cannot."""
  path, colon, variant = argument.partition(":")
  if not pathlib.Path(path).is_file():
    near = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.py")))
    raise UserError(f"no such config: {path}; there are: {near or 'none in ./configs'}")
  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(variant) if colon else get_config()
  except KeyError as error:
    raise UserError(f"{path} gives no config: it lacks {error}; see ./configs") from None
  except Exception as error:  # the file is the user's: whatever it raises is to be fixed there
    reason = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
    raise UserError(f"{argument}: {reason}{kind}") from None
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config gives no ConfigDict; see ./configs")
  return config.lock()
