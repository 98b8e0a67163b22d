"""An adapter as a folder of two files, with the trained parameters but no frozen ones.

  adapter.safetensors   the trained arrays; their keys are the paths of `core.paths.flatten`
  adapter.json          format version; metadata: method, model, fingerprint of the frozen model,
                        the method's settings; shape and dtype of each array; the SHA-256 of
                        adapter.safetensors

`adapter.json` is written last; a folder whose two files do not match is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from frozen_jax.core import files, paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.user_path import user_path

FORMAT_VERSION = 1
ADAPTER_JSON = "adapter.json"
ARRAYS = "adapter.safetensors"
REQUIRED_KEYS = ("method", "model", "frozen_fingerprint")
RESERVED_KEYS = ("format_version", "tensors", "sha256")


def write_adapter(
  folder: str | AnyPath, params: Mapping[str, Any], metadata: Mapping[str, Any]
) -> AnyPath:
  """Writes the adapter, each file atomically; returns the folder.

  Args:
    folder: created if necessary; an adapter in it is replaced, other files are not touched.
    params: the trained parameters, nested dicts with strings as keys and arrays as leaves.
    metadata: JSON values, with at least `method`, `model` (a name) and `frozen_fingerprint`.

  Raises:
    ValueError: `metadata` lacks one of these or has a reserved key (`RESERVED_KEYS`), or a key of
      the tree is not a plain string, or a dtype is not a native one of numpy.
    UserError: the folder cannot be written.
  """
  missing = [key for key in REQUIRED_KEYS if key not in metadata]
  reserved = [key for key in RESERVED_KEYS if key in metadata]
  if missing or reserved:
    raise ValueError(f"the metadata of an adapter lack {missing}, and may not hold {reserved}")
  _check_path_keys(params)
  leaves = {
    path: np.asarray(leaf, order="C") for path, leaf in sorted(paths.flatten(params).items())
  }
  unsupported = [path for path, leaf in leaves.items() if leaf.dtype.kind not in "biuf"]
  if unsupported:  # bfloat16: safetensors writes it from numpy but cannot read it back
    raise ValueError(f"trained arrays are float32; {unsupported} are of another kind")
  data = safetensors.numpy.save(leaves)
  description = {
    "format_version": FORMAT_VERSION,
    **metadata,
    "tensors": {
      path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves.items()
    },
    "sha256": hashlib.sha256(data).hexdigest(),
  }
  text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
  folder = user_path(folder)
  files.write_bytes(folder / ARRAYS, data)
  files.write_bytes(folder / ADAPTER_JSON, text.encode())
  return folder


def read_adapter(folder: str | AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads an adapter of `write_adapter` -> (parameters as nested dicts of numpy arrays, metadata).

  Raises UserError if a file is missing, truncated or altered, or of another format version.
  """
  folder = user_path(folder)
  description = _read_description(folder / ADAPTER_JSON)
  data = _read_bytes(folder / ARRAYS)
  if hashlib.sha256(data).hexdigest() != description["sha256"]:
    raise UserError(
      f"{folder / ARRAYS} is not the file that {ADAPTER_JSON} describes (SHA-256 differs):"
      " truncated or altered; copy or export the adapter again"
    )
  try:
    leaves = safetensors.numpy.load(data)
  except safetensors.SafetensorError as error:
    raise UserError(
      f"{folder / ARRAYS} is no safetensors file ({error}); export the adapter again"
    ) from error
  tensors = {path: {"shape": list(a.shape), "dtype": str(a.dtype)} for path, a in leaves.items()}
  if tensors != description["tensors"]:
    raise UserError(
      f"{folder / ADAPTER_JSON} and {ARRAYS} do not list the same tensors; export the adapter again"
    )
  metadata = {key: value for key, value in description.items() if key not in RESERVED_KEYS}
  branches = {
    "/".join(path.split("/")[:n]) for path in leaves for n in range(1, path.count("/") + 1)
  }
  if both := branches & leaves.keys():
    raise UserError(
      f"{folder / ARRAYS} has {min(both)!r:.80} as an array and as a group of arrays; export the"
      " adapter again"
    )
  return paths.unflatten(dict(sorted(leaves.items()))), metadata


def _check_path_keys(tree: Mapping[Any, Any]) -> None:
  for key, value in tree.items():
    if not isinstance(key, str) or not key or paths.SEPARATOR in key:
      raise ValueError(f"{key!r} cannot be part of a path: use strings without {paths.SEPARATOR!r}")
    if isinstance(value, Mapping):
      _check_path_keys(value)


def _read_description(path: AnyPath) -> dict[str, Any]:
  try:
    description = json.loads(_read_bytes(path))
  except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
    raise UserError(f"{path} is not JSON ({error}); export the adapter again") from error
  version = description.get("format_version") if isinstance(description, dict) else None
  if version != FORMAT_VERSION:
    raise UserError(
      f"{path} has format version {version!r}, and this frozen_jax reads version {FORMAT_VERSION};"
      " install the frozen_jax that wrote it, or export the adapter again"
    )
  missing = [key for key in (*REQUIRED_KEYS, *RESERVED_KEYS) if key not in description]
  if missing:
    raise UserError(f"{path} lacks {', '.join(missing)}; export the adapter again")
  no_texts = [key for key in REQUIRED_KEYS if not isinstance(description[key], str)]
  if no_texts:
    raise UserError(f"{path} has no text as {', '.join(no_texts)}; export the adapter again")
  return description


def _read_bytes(path: AnyPath) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError as error:
    raise UserError(
      f"{path} does not exist; give a folder that --mode=export wrote, with"
      f" {ADAPTER_JSON} and {ARRAYS} in it"
    ) from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from error
