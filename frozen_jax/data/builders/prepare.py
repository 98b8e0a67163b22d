"""Prepares the built-in data sets once in the user's cache and opens them from there.

A prepared data set is in `CACHE/datasets/NAME-KEY/`, KEY being a hash of everything it is made
from: this package's builders and its template renderer, and the versions of countryinfo, jinja and
Python. So it is never stale, and versions do not collide. It is prepared in a temporary folder,
which is then renamed: an interrupted or a parallel preparation leaves nothing incomplete.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import io
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.data.builtin import BUILTIN_DATASETS
from frozen_jax.text import jinja_templates

_RENDERER = pathlib.Path(jinja_templates.__file__)


def prepared_builder(name: str) -> tfds.core.DatasetBuilder:
  """The builder of a built-in data set (a key of BUILTIN_DATASETS), prepared.

  Raises:
    UserError: the cache cannot be written.
  """
  return _builder(prepare(name))


@functools.cache
def _builder(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
  return tfds.builder_from_directory(folder)


def prepare(name: str) -> pathlib.Path:
  """The folder of a prepared data set; the first time it is prepared, which takes seconds."""
  parent = cache_dir() / "datasets"
  final = parent / f"{name}-{build_key()}"
  kind = builder_class(name)
  if not final.exists():
    try:
      parent.mkdir(parents=True, exist_ok=True)
      temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
      try:
        with quiet():
          kind(data_dir=temporary, file_format="array_record").download_and_prepare()
        _rename(temporary, final)
      finally:
        shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
      raise UserError(
        f"cannot prepare the data set {name} in {parent} ({error.strerror or error}); free some"
        " space there or let FROZEN_JAX_CACHE name another folder"
      ) from error
  return final / name / str(kind.VERSION)


def builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
  """The builder's class of a built-in data set."""
  module = importlib.import_module(f"frozen_jax.data.builders.{BUILTIN_DATASETS[name].module}")
  return getattr(module, BUILTIN_DATASETS[name].builder)


@functools.cache
def build_key() -> str:
  """A hash of everything that the built-in data sets are made from."""
  digest = hashlib.sha256()
  here = pathlib.Path(__file__).parent
  for path in (*sorted(here.glob("*.py")), *sorted(here.glob("*.yaml")), _RENDERER):
    digest.update(path.read_bytes())
  for package in ("countryinfo", "jinja2"):
    digest.update(importlib.metadata.version(package).encode())
  digest.update(platform.python_version().encode())
  return digest.hexdigest()[:12]


def _rename(temporary: pathlib.Path, final: pathlib.Path) -> None:
  try:
    os.rename(temporary, final)
  except OSError:
    if not final.exists():  # else another process was first, with the same rows
      raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without the progress bars and messages of tfds, which would interrupt those of a run."""
  from tensorflow_datasets.core.utils import tqdm_utils

  enabled = tqdm_utils._active
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.display_progress_bar(enable=enabled)
