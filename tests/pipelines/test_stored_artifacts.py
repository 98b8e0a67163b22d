"""Artifacts of a workdir on a store: made once, copied to other machines, never half there."""

import json

import pytest

from frozen_jax.core.errors import StoreError
from frozen_jax.core.object_store import StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.pipelines import stored_artifacts
from frozen_jax.pipelines.artifacts import Artifacts

ROWS = [{"n": number} for number in range(6)]


@pytest.fixture
def opened(store, request, tmp_path, monkeypatch):
  """`opened(machine)`: the artifacts of one workdir, on a machine with a cache of its own."""

  def on(machine):
    monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / machine))
    return Artifacts(user_path(f"{store.url}/{request.node.name}/reader"))

  return on


def file(text):
  return lambda path: path.write_text(text)


def tree(text):
  def make(path):
    (path / "inner").mkdir()
    (path / "inner" / "a.json").write_text(text)

  return make


def never(path):
  raise AssertionError("made again")


def contents(path):
  return (path / "inner" / "a.json" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind, make", [("file", file), ("tree", tree)])
def test_made_on_one_machine_and_read_on_another(opened, kind, make):
  first = opened("a")
  path = getattr(first, kind)("one", {"depth": 1}, make("made"))
  assert contents(path) == "made" and path.is_relative_to(first.folder)
  assert (first.given / "one.meta.json").exists() and (first.given / "one").exists()
  other = opened("b")
  assert contents(getattr(other, kind)("one", {"depth": 1}, never)) == "made"
  assert other.digests == first.digests
  # --- the other makes it anew: the first takes that one
  getattr(other, kind)("one", {"depth": 2}, make("made anew"))
  assert contents(getattr(opened("a"), kind)("one", {"depth": 2}, never)) == "made anew"
  assert contents(opened("c").found("one")) == "made anew"
  assert not opened("c").found("nothing").exists()


def test_what_is_gone_on_the_store_is_made_again(opened):
  opened("a").file("one", {}, file("made"))
  for path in opened("a").given.files():
    path.unlink()
  assert contents(opened("a").file("one", {}, file("again"))) == "again"


def test_what_is_half_uploaded_is_made_again(opened, monkeypatch):
  opened("a").file("one", {"depth": 1}, file("made"))
  upload = StorePath.upload

  def failing(path, source):
    if path.name.endswith(".meta.json"):
      raise StoreError("gone")
    upload(path, source)

  with monkeypatch.context() as patched, pytest.raises(StoreError):
    patched.setattr(StorePath, "upload", failing)
    opened("a").file("one", {"depth": 2}, file("half"))
  assert contents(opened("b").file("one", {"depth": 2}, file("whole"))) == "whole"
  assert contents(opened("a").file("one", {"depth": 2}, never)) == "whole"


def test_rows_go_on_where_another_machine_was_killed(opened, monkeypatch):
  monkeypatch.setattr(stored_artifacts, "UPLOAD_EVERY", 0.0)

  def killed(first):
    yield from ROWS[first:4]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    opened("a").rows("rows.jsonl", {}, killed, block=2)
  begun = []

  def rest(first):
    begun.append(first)
    return ROWS[first:]

  path = opened("b").rows("rows.jsonl", {}, rest, block=2)
  assert begun == [4] and [json.loads(line) for line in path.read_text().splitlines()] == ROWS
  names = [one.name for one in opened("b").given.iterdir()]
  assert names == ["rows.jsonl", "rows.jsonl.meta.json"]
