"""Artifacts: kept where nothing changed, made anew where something did, never half there."""

import dataclasses
import json

import pytest

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.artifacts import Artifacts, digest


@dataclasses.dataclass(frozen=True)
class Settings:
  """A section of today."""

  depth: int = setting(5, "passages")
  sizes: tuple[int, ...] = setting((1, 2), "of something")
  log_every: int = setting(10, "steps between lines", affects_result=False)


@dataclasses.dataclass(frozen=True)
class LaterSettings(Settings):
  """The same section in a later version."""

  bias: float = setting(0.0, "added to all")


class Work:
  """An artifact's `make` that counts its calls."""

  def __init__(self, text="made"):
    self.text, self.calls = text, 0

  def file(self, path):
    self.calls += 1
    path.write_text(self.text)

  def tree(self, path):
    self.calls += 1
    (path / "inner").mkdir()
    (path / "inner" / "a").write_text(self.text)

  def rows(self, first):
    self.calls += 1
    return [{"text": self.text}][first:]


@pytest.fixture(params=["file", "tree"])
def kind(request):
  return request.param


def ensure(artifacts, kind, work, dependencies):
  more = {"block": 1} if kind == "rows" else {}
  return getattr(artifacts, kind)("one", dependencies, getattr(work, kind), **more)


def test_an_unchanged_artifact_is_kept_and_a_changed_one_made_anew(tmp_path, kind):
  work, artifacts = Work(), Artifacts(tmp_path / "artifacts")
  path = ensure(artifacts, kind, work, {"of": "1", "sizes": (1, 2)})
  assert digest(path) == artifacts.digests["one"]
  again = Artifacts(tmp_path / "artifacts")
  assert ensure(again, kind, work, {"sizes": [1, 2], "of": "1"}) == path and work.calls == 1
  assert again.digests == artifacts.digests
  work.text = "other"
  ensure(again, kind, work, {"of": "2", "sizes": [1, 2]})
  assert work.calls == 2 and again.digests != artifacts.digests


@pytest.mark.parametrize("kind", ["file", "tree", "rows"])
def test_dependencies_are_recorded_as_sections(tmp_path, kind):
  work, artifacts = Work(), Artifacts(tmp_path)
  ensure(artifacts, kind, work, {"settings": Settings(7), "corpus": "ab"})
  assert json.loads((tmp_path / "one.meta.json").read_text())["dependencies"] == {
    "settings": {"depth": 7, "sizes": [1, 2]},
    "corpus": "ab",
  }
  for same in (Settings(7, log_every=1), LaterSettings(7)):
    ensure(artifacts, kind, work, {"settings": same, "corpus": "ab"})
  assert work.calls == 1, "a later field has its default, logging makes no difference"
  for other in (Settings(8), LaterSettings(8, bias=0.1), LaterSettings(8), Settings(8)):
    ensure(artifacts, kind, work, {"settings": other, "corpus": "ab"})
  assert work.calls == 4, "a field that is gone makes no difference"


def test_what_was_altered_or_is_not_recorded_is_made_anew(tmp_path, kind):
  work, artifacts = Work(), Artifacts(tmp_path)
  path = ensure(artifacts, kind, work, {})
  (path if kind == "file" else path / "inner" / "a").write_text("cut")
  ensure(artifacts, kind, work, {})
  (tmp_path / "one.meta.json").write_text("{")
  ensure(artifacts, kind, work, {})
  assert work.calls == 3
  assert json.loads((tmp_path / "one.meta.json").read_text())["digest"] == digest(path)


def test_an_artifact_that_fails_leaves_nothing_that_counts(tmp_path, kind):
  work, artifacts = Work(), Artifacts(tmp_path)
  ensure(artifacts, kind, work, {"of": 1})

  def killed(path):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    getattr(artifacts, kind)("one", {"of": 2}, killed)
  assert list(tmp_path.iterdir()) == []
  ensure(artifacts, kind, work, {"of": 1})
  assert work.calls == 2


def test_what_cannot_be_read_is_refused(tmp_path):
  with pytest.raises(UserError, match="cannot read"):
    digest(tmp_path / "absent")


def test_killed_rows_continue_after_the_last_complete_block(tmp_path):
  rows = [{"number": number} for number in range(7)]
  artifacts, begun = Artifacts(tmp_path), []

  def killed_in_the_third_block(first):
    begun.append(first)
    yield from rows[first:5]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    artifacts.rows("one", {"of": Settings(1)}, killed_in_the_third_block, 2)
  (part,) = tmp_path.glob("one.*.part")
  with part.open("ab") as file:  # a kill may leave less than a block, and less than a line
    file.write(b'{"number": 4}\n{"num')

  def complete(first):
    begun.append(first)
    return rows[first:]

  path = artifacts.rows("one", {"of": LaterSettings(1)}, complete, 2)
  assert [json.loads(line) for line in path.read_text().splitlines()] == rows
  assert begun == [0, 4]
  assert sorted(one.name for one in tmp_path.iterdir()) == ["one", "one.meta.json"]


def test_rows_of_other_dependencies_are_not_continued(tmp_path):
  def killed(first):
    yield {"number": first}
    yield {"number": first + 1}
    raise KeyboardInterrupt

  artifacts = Artifacts(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    artifacts.rows("one", {"of": 1}, killed, 1)
  path = artifacts.rows("one", {"of": 2}, lambda first: [{"first": first}], 1)
  assert json.loads(path.read_text()) == {"first": 0}
