"""The folder in which downloads and prepared data sets are cached between runs."""

import os
import pathlib


def cache_dir() -> pathlib.Path:
  """The user's cache directory of this package; it need not exist yet.

  `$FROZEN_JAX_CACHE`, else `$XDG_CACHE_HOME/frozen_jax`, else `~/.cache/frozen_jax`. An empty
  variable counts as not set.
  """
  if configured := os.environ.get("FROZEN_JAX_CACHE"):
    return pathlib.Path(configured).expanduser().absolute()
  base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  return (base / "frozen_jax").absolute()
