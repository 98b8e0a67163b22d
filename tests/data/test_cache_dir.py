import pathlib

import pytest

from frozen_jax.core.cache_dir import cache_dir


@pytest.mark.parametrize(
  "own, shared, expected",
  [
    ("/a/b", "/c", "/a/b"),
    ("", "/c", "/c/frozen_jax"),
    (None, "/c", "/c/frozen_jax"),
    (None, "", "/home/me/.cache/frozen_jax"),
    (None, None, "/home/me/.cache/frozen_jax"),
    ("~/x", None, "/home/me/x"),
  ],
)
def test_cache_dir(monkeypatch, own, shared, expected):
  monkeypatch.setenv("HOME", "/home/me")
  for name, value in (("FROZEN_JAX_CACHE", own), ("XDG_CACHE_HOME", shared)):
    if value is None:
      monkeypatch.delenv(name, raising=False)
    else:
      monkeypatch.setenv(name, value)
  assert cache_dir() == pathlib.Path(expected)
