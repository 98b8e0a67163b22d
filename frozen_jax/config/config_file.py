"""The experiments: config files with their variants, by name or by path. Imports no jax.

They stand in configs/ at the top of the repository; an installed package has a copy of them.
"""

import ast
import difflib
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import local_path

_PACKAGE = pathlib.Path(__file__).parents[1]
_FOLDER = "configs"


def load_config(argument: str) -> ConfigDict:
  """NAME[:variant] or FILE[:variant] -> the config that the file's `get_config` gives.

  Raises UserError where there is no such file or it gives none.
  """
  scheme = re.match(r"\w+://|", argument)[0]
  name, colon, variant = argument.removeprefix(scheme).partition(":")
  path = find_config(scheme + name)
  try:
    get_config = runpy.run_path(str(path))["get_config"]
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


def find_config(given: str) -> pathlib.Path:
  """The file that `--config` names, without its variant.

  `NAME`, `NAME.py` and `configs/NAME.py` are a file of ./configs, or else the experiment of that
  name that came with the package; any other path is a file of the user's. Raises UserError where
  there is none, with the nearest name.
  """
  path = local_path(given)
  known = experiments()
  name = path.name.removesuffix(".py")
  of_folder = path.parent in (pathlib.Path(), pathlib.Path(_FOLDER))
  if path.suffix == ".py" and path.is_file():
    return path
  if of_folder and name in known:
    return known[name]
  for file in (path.with_name(f"{name}.py") if name else path, path):
    if file.is_file():
      return file
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  meant = f"; did you mean --config={near[0]}?" if near else ""
  raise UserError(f"no such config: {path}{meant}; there are: {', '.join(known)}")


def experiments() -> dict[str, pathlib.Path]:
  """The files of the experiments by name, sorted: those of ./configs before the package's own."""
  installed = _PACKAGE / _FOLDER  # in a wheel; in a clone they stand beside the package
  folders = (installed if installed.is_dir() else _PACKAGE.parent / _FOLDER, pathlib.Path(_FOLDER))
  files = {file.stem: file for folder in folders for file in sorted(folder.glob("[!_]*.py"))}
  return dict(sorted(files.items()))


def first_lines() -> dict[str, str]:
  """What each experiment is: {name: the first line of its file's docstring}; "" without one."""
  return {name: _first_line(path) for name, path in experiments().items()}


def _first_line(path: pathlib.Path) -> str:
  try:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
  except (OSError, SyntaxError, ValueError):
    return ""
  return (text or "").partition("\n")[0]
