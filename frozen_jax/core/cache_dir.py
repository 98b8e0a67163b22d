"""Where downloads and prepared data sets are kept between runs: one rule for the whole package."""

import os
import pathlib


def cache_dir() -> pathlib.Path:
  """The user's cache directory of this package; it need not exist yet.

  `$FROZEN_JAX_CACHE`, else `$XDG_CACHE_HOME/frozen_jax`, else `~/.cache/frozen_jax`. An empty
  variable counts as not set.
  """
  if own := os.environ.get("FROZEN_JAX_CACHE"):
    return pathlib.Path(own).expanduser().absolute()
  shared = os.environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(shared).expanduser() if shared else pathlib.Path("~/.cache").expanduser()
  return (base / "frozen_jax").absolute()
