"""What the tests of training share: the toy method alongside them, and what is already compiled."""

import pathlib
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

sys.path.insert(0, str(pathlib.Path(__file__).parent))

SETTINGS = {
  "jax_persistent_cache_min_compile_time_secs": 0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
  """Dozens of runs of one toy: each of its programs is compiled once in a session of tests.

  The tests that kill whole processes are not touched by it: those compile anew.
  """
  before = {name: getattr(jax.config, name) for name in (*SETTINGS, "jax_compilation_cache_dir")}
  changed = SETTINGS | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
  for name, value in changed.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
