"""Where a process keeps what it has compiled for the next one. Imports no jax."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping, MutableMapping

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import user_path

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_MAX_BYTES = 2 << 30  # what was not used for longest is dropped beyond it


def enable_compilation_cache(environment: MutableMapping[str, str] = os.environ) -> None:
  """Has JAX keep what takes a second or more to compile in the user's cache folder.

  Before jax is imported. A JAX_COMPILATION_CACHE_DIR that is set stays, with `~` as the home
  folder; an empty one means none. Where the folder cannot be written, nothing is kept.
  """
  if (given := environment.get(_VARIABLE)) is not None:
    if given.startswith("~"):  # jax takes it for a folder's name
      environment[_VARIABLE] = _expanded(given)
    return
  folder = own_folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return
  if os.access(folder, os.W_OK):
    environment[_VARIABLE] = str(folder)
    environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MAX_BYTES))
    # XLA's own caches for GPUs put this folder's name into JAX's keys, so that no other machine
    # would find a program whose folder has another name (`core/stored_programs.py`).
    environment.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def own_folder() -> pathlib.Path:
  """The folder in the user's cache, of this kind of machine."""
  return cache_dir() / "compiled" / _machine()


def is_own_folder_used(environment: Mapping[str, str] = os.environ) -> bool:
  """Whether what is compiled is kept there, and not where the user says."""
  return environment.get(_VARIABLE) == str(own_folder())


def _expanded(given: str) -> str:
  """The folder below a home folder; "" where there is no such home folder."""
  try:
    return str(user_path(given))
  except UserError:
    return ""


def _machine() -> str:
  """Names the kind of this machine: code for one CPU need not run on another with the same home."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  text = f"{platform.machine()} {platform.processor()} {features}"
  return hashlib.sha256(text.encode()).hexdigest()[:12]
