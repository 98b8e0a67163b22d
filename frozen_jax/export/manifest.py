"""The JSON file of an export: what it holds, and the size and SHA-256 of each of its other files.

It is written last. `read_manifest` refuses a folder whose files are not those it lists; no file is
opened whose name leads out of the folder, and nothing is unpickled.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import safetensors

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_json
from frozen_jax.core.user_path import local_path

FORMAT_VERSION = 1
_KEYS = ("format", "format_version", "files")
_MOST_BYTES = 2**28  # of the JSON file itself
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "copy it again, or export it again"


def manifest_name(format_name: str) -> str:
  """The JSON file of a format."""
  return f"{format_name}.json"


def write_manifest(folder: pathlib.Path, format_name: str, about: Mapping[str, Any]) -> None:
  """Writes the JSON file of a format, with what is in the folder; about: JSON values.

  Raises UserError where it cannot be written.
  """
  found = sorted(path for path in folder.rglob("*") if path.is_file())
  files = {
    path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    for path in found
  }
  head = {"format": format_name, "format_version": FORMAT_VERSION}
  write_json(folder / manifest_name(format_name), {**head, **about, "files": files})


def read_manifest(folder: str | pathlib.Path, format_name: str) -> dict[str, Any]:
  """What the JSON file of an export says, after all files that it lists were found to be whole.

  Raises:
    UserError: one is missing, truncated, altered or no safetensors file, or a name is none of a
      file within the folder.
  """
  folder = local_path(folder)
  path = folder / manifest_name(format_name)
  about = _read_json(path)
  if about.get("format") != format_name or about.get("format_version") != FORMAT_VERSION:
    raise UserError(
      f"{path} is of {str(about.get('format'))[:40]!r}, version"
      f" {str(about.get('format_version'))[:40]!r}, and this frozen_jax reads {format_name!r},"
      f" version {FORMAT_VERSION}; export it again"
    )
  files = about.get("files")
  if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
    raise UserError(f"{path} does not list its files with bytes and sha256; {_AGAIN}")
  for name in files:
    if not _is_within(folder, name):
      raise UserError(f"{path} names {name[:80]!r}, which is no file within it; {_AGAIN}")
  for name, entry in files.items():
    _check_file(folder / name, entry)
  return about


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _MOST_BYTES:
      raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes; {_AGAIN}")
    about = json.loads(path.read_bytes())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(f"there is no {path}; give the folder of an export") from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON ({error}); {_AGAIN}") from error
  if not isinstance(about, dict):
    raise UserError(f"{path} is no JSON object; {_AGAIN}")
  return about


def _is_entry(entry: Any) -> bool:
  if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
    return False
  return isinstance(entry.get("sha256"), str) and bool(_SHA256.fullmatch(entry["sha256"]))


def _is_within(folder: pathlib.Path, name: str) -> bool:
  """Whether a name, with / between folders, is one of the folder's own files."""
  parts = name.split("/")
  if "\\" in name or ":" in name or not name.isprintable() or {"", ".", ".."} & set(parts):
    return False
  try:
    return (folder / name).resolve().is_relative_to(folder.resolve())
  except (OSError, RuntimeError):  # a loop of links, a name too long
    return False


def _check_file(path: pathlib.Path, entry: Mapping[str, Any]) -> None:
  try:
    size = path.stat().st_size if path.is_file() else None
    if size != entry["bytes"] or _sha256(path) != entry["sha256"]:
      found = "is missing" if size is None else "was truncated or altered"
      raise UserError(f"{path} {found}: it is not what the export lists; {_AGAIN}")
    if path.suffix == ".safetensors":
      with safetensors.safe_open(path, framework="np") as tensors:
        tensors.keys()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from error
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is no safetensors file ({error}); export it again") from error


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
