"""Paths that a user gives: `~` is the home folder, never a folder of that name."""

import os
import pathlib

from frozen_jax.core.errors import UserError


def user_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """The path with `~` or `~NAME` at its start replaced by that home folder.

  Raises:
    UserError: there is no home folder of that name.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise UserError(
      f"{path}: there is no home folder of that name; write the path from / on"
    ) from error
