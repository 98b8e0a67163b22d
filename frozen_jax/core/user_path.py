"""Paths that a user gives: `~` is the home folder, `gs://` and `s3://` are object stores."""

import os
import pathlib

from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath, StorePath, any_path


def user_path(path: str | os.PathLike[str] | StorePath) -> AnyPath:
  """The path, on a store or with `~` or `~NAME` at its start replaced by that home folder.

  Raises:
    UserError: there is no home folder of that name, or no such store (`object_store.StorePath`).
  """
  found = any_path(path)
  if isinstance(found, StorePath):
    return found
  try:
    return found.expanduser()
  except RuntimeError as error:
    raise UserError(
      f"{path}: there is no home folder of that name; write the path from / on"
    ) from error


def local_path(path: str | os.PathLike[str] | StorePath) -> pathlib.Path:
  """As `user_path`, for what has to be on a disk: UserError for a path on a store."""
  found = user_path(path)
  if isinstance(found, StorePath):
    raise UserError(f"{found} is on an object store, where this cannot be; give a local path")
  return found
