"""What is compiled is kept in the user's cache folder, unless they say otherwise."""

import pathlib

import pytest

from frozen_jax.core.compilation_cache import enable_compilation_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_it_is_kept_in_a_folder_of_this_kind_of_machine(cache):
  environment, again = {}, {}
  enable_compilation_cache(environment)
  enable_compilation_cache(again)
  folder = pathlib.Path(environment["JAX_COMPILATION_CACHE_DIR"])
  assert folder.is_dir() and folder.parent == cache / "compiled" and again == environment
  assert int(environment["JAX_COMPILATION_CACHE_MAX_SIZE"]) > 1e9
  assert environment["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_the_users_own_choice_stays(cache, given):
  environment = {"JAX_COMPILATION_CACHE_DIR": given}
  enable_compilation_cache(environment)
  assert environment == {"JAX_COMPILATION_CACHE_DIR": given} and not cache.exists()


def test_without_a_folder_nothing_is_kept(cache):
  cache.write_text("a file")
  environment = {}
  enable_compilation_cache(environment)
  assert environment == {}


def test_a_home_folder_is_found(cache, monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  for given, folder in (
    ("~/jax", "/home/somebody/jax"),
    ("~", "/home/somebody"),
    ("~nobody-at-all/jax", ""),
  ):
    environment = {"JAX_COMPILATION_CACHE_DIR": given}
    enable_compilation_cache(environment)
    assert environment == {"JAX_COMPILATION_CACHE_DIR": folder}
