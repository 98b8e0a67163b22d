"""The folder in which downloads and prepared data sets are cached between runs."""

import os
import pathlib

from frozen_jax.core.user_path import local_path


def cache_dir() -> pathlib.Path:
  """The user's cache directory of this package; it need not exist yet.

  `$FROZEN_JAX_CACHE`, else `$XDG_CACHE_HOME/frozen_jax`, else `~/.cache/frozen_jax`. An empty
  variable counts as not set. UserError for one that names an object store: files of the cache are
  mapped into memory.
  """
  if configured := os.environ.get("FROZEN_JAX_CACHE"):
    return local_path(configured).absolute()
  base = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return (base / "frozen_jax").absolute()
