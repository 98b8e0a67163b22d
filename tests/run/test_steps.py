"""Steps: skipped where nothing changed, made anew where something did, never half there."""

import json

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.run.steps import Steps, digest


class Work:
  """A step's `make` that counts its calls."""

  def __init__(self, text="made"):
    self.text, self.calls = text, 0

  def file(self, path):
    self.calls += 1
    path.write_text(self.text)

  def tree(self, path):
    self.calls += 1
    (path / "inner").mkdir()
    (path / "inner" / "a").write_text(self.text)


@pytest.fixture(params=["file", "tree"])
def kind(request):
  return request.param


def made(steps, kind, work, inputs):
  return getattr(steps, kind)("step", inputs, getattr(work, kind))


def test_an_unchanged_step_is_skipped_and_a_changed_one_made_anew(tmp_path, kind):
  work, steps = Work(), Steps(tmp_path / "steps")
  path = made(steps, kind, work, {"of": "1", "sizes": (1, 2)})
  assert digest(path) == steps.digests["step"]
  again = Steps(tmp_path / "steps")
  assert made(again, kind, work, {"sizes": [1, 2], "of": "1"}) == path and work.calls == 1
  assert again.digests == steps.digests
  work.text = "other"
  made(again, kind, work, {"of": "2", "sizes": [1, 2]})
  assert work.calls == 2 and again.digests != steps.digests


def test_what_was_altered_or_is_not_noted_is_made_anew(tmp_path, kind):
  work, steps = Work(), Steps(tmp_path)
  path = made(steps, kind, work, {})
  (path if kind == "file" else path / "inner" / "a").write_text("cut")
  made(steps, kind, work, {})
  (tmp_path / "step.made.json").write_text("{")
  made(steps, kind, work, {})
  assert work.calls == 3
  assert json.loads((tmp_path / "step.made.json").read_text())["digest"] == digest(path)


def test_a_step_that_fails_leaves_nothing_that_counts(tmp_path, kind):
  work, steps = Work(), Steps(tmp_path)
  made(steps, kind, work, {"of": 1})

  def killed(path):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    getattr(steps, kind)("step", {"of": 2}, killed)
  assert list(tmp_path.iterdir()) == []
  made(steps, kind, work, {"of": 1})
  assert work.calls == 2


def test_what_cannot_be_read_is_refused(tmp_path):
  with pytest.raises(UserError, match="cannot read"):
    digest(tmp_path / "absent")


def test_killed_rows_go_on_behind_the_last_whole_block(tmp_path):
  rows = [{"at": at} for at in range(7)]
  steps, begun = Steps(tmp_path), []

  def killed_in_the_third_block(first):
    begun.append(first)
    yield from rows[first:5]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    steps.rows("step", {"of": 1}, killed_in_the_third_block, 2)
  (part,) = tmp_path.glob("step.*.part")
  with part.open("ab") as file:  # a kill may leave less than a block, and less than a line
    file.write(b'{"at": 4}\n{"at')

  def whole(first):
    begun.append(first)
    return rows[first:]

  path = steps.rows("step", {"of": 1}, whole, 2)
  assert [json.loads(line) for line in path.read_text().splitlines()] == rows
  assert begun == [0, 4]
  assert sorted(one.name for one in tmp_path.iterdir()) == ["step", "step.made.json"]


def test_rows_of_other_inputs_are_not_gone_on_with(tmp_path):
  def killed(first):
    yield {"at": first}
    yield {"at": first + 1}
    raise KeyboardInterrupt

  steps = Steps(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    steps.rows("step", {"of": 1}, killed, 1)
  path = steps.rows("step", {"of": 2}, lambda first: [{"first": first}], 1)
  assert json.loads(path.read_text()) == {"first": 0}
