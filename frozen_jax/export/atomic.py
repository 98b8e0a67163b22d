"""Writing a file so that a reader sees the old one or the new one, never half of one."""

import os
import pathlib
import tempfile

from frozen_jax.core.errors import UserError


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes `data` to `path` by way of a temporary file beside it; makes the folder if need be.

  Raises UserError where that is not possible (no space, no permission); `path` is then as before.
  """
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
    os.replace(temporary, path)
  except OSError as error:
    if temporary is not None:
      pathlib.Path(temporary).unlink(missing_ok=True)
    raise UserError(
      f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
    ) from error
