"""Stages that go back to a checkpoint where a loss is no number, and go on with later batches."""

import logging
import os
import signal

import pytest
import toy

from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.training.metrics import read_metrics
from tests.processes import HANGS_AFTER, cluster, start

pytestmark = pytest.mark.program

EVERY = 3  # steps between checkpoints
NAN, LARGE = float("nan"), 1e4


class Fails(Exception):
  pass


class Ended(toy.MarkedBatches):
  """Before batch `at` the process is asked to stop, or with `fails` breaks off."""

  def __init__(self, at, fails=False, **more):
    super().__init__(**more)
    self.at, self.fails = at, fails

  def __next__(self):
    if self.taken == self.at:
      self.at = -1
      if self.fails:
        raise Fails
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__next__()


def train(folder, batches, times=NAN, **changes):
  given = {"checkpoint_every": EVERY, "on_nonfinite": "rollback"} | changes
  return toy.train(folder, method=toy.Spoilt(times), batches=batches, **given)


def without(folder, *left_out, **changes):
  """The stage that never saw those batches."""
  return train(folder, toy.MarkedBatches(left_out=left_out), on_nonfinite="stop", **changes)


def lines(folder, split="train"):
  return {e["step"]: e for e in read_metrics(folder) if e["split"] == split}


def assert_the_same(fitted, folder, other, other_folder, back):
  """Whether a stage is that of other batches; back: {step: the step it came back from}."""
  assert toy.digest(fitted.last) == toy.digest(other.last)
  assert toy.digest(fitted.best) == toy.digest(other.best)
  assert (fitted.tokens, fitted.validation) == (other.tokens, other.validation)
  assert lines(folder, "validation") == lines(other_folder, "validation")
  expected = lines(other_folder)
  for step, source in back.items():
    expected[step] |= {"rolled_back_from": source}
  assert lines(folder) == expected
  assert len(read_metrics(folder)) == len(read_metrics(other_folder)), "each step once"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The stage without the batches that are taken back where batch 8 is bad."""
  folder = tmp_path_factory.mktemp("straight")
  return without(folder, 6, 7, 8), folder


@pytest.mark.parametrize("times", [NAN, LARGE])
def test_it_goes_on_from_the_checkpoint_with_later_batches(straight, tmp_path, caplog, times):
  caplog.set_level(logging.WARNING, logger="frozen_jax")
  fitted = train(tmp_path, toy.MarkedBatches(bad=[8]), times)
  assert_the_same(fitted, tmp_path, *straight, {7: 9})
  assert fitted.rolled_back == [{"from": 9, "to": 6}] and fitted.skipped == 0
  (said,) = [record.getMessage() for record in caplog.records]
  assert "at step 9 of stage toy: back to step 6, roll-back 1 of 3; its batch is in" in said
  assert (tmp_path / "bad_batch_toy_9.npz").exists()
  assert os.listdir(tmp_path / "checkpoints" / "toy") == ["00000012"]


@pytest.mark.parametrize("first", [False, True])
def test_before_the_first_checkpoint_it_starts_anew(tmp_path, first):
  back = train(tmp_path / "back", toy.MarkedBatches(bad=[1]), validate_first=first)
  other = without(tmp_path / "other", 0, 1, validate_first=first)
  assert_the_same(back, tmp_path / "back", other, tmp_path / "other", {1: 2})


@pytest.mark.parametrize(
  "at, fails",
  [(7, False), (8, False), (9, False), (11, False), (6, True), (8, True), (9, True)],
  ids=lambda one: one if type(one) is int else ("stopped", "broken off")[one],
)
def test_stopped_or_broken_off_and_resumed_it_assert_the_same(straight, tmp_path, at, fails):
  with pytest.raises(Fails if fails else Interrupted):
    train(tmp_path, Ended(at, fails, bad=[8]))
  fitted = train(tmp_path, toy.MarkedBatches(bad=[8]))
  assert_the_same(fitted, tmp_path, *straight, {7: 9})
  assert fitted.rolled_back == [{"from": 9, "to": 6}]


def test_stopped_twice_between_the_checkpoint_and_the_bad_batch(straight, tmp_path):
  for at in (6, 7, 9, 10):
    with pytest.raises(Interrupted):
      train(tmp_path, Ended(at, bad=[8]))
  assert_the_same(train(tmp_path, toy.MarkedBatches(bad=[8])), tmp_path, *straight, {7: 9})


def test_a_stage_that_stopped_at_it_goes_on_so(straight, tmp_path):
  with pytest.raises(UserError, match="on_nonfinite=skip or rollback"):
    train(tmp_path, toy.MarkedBatches(bad=[8]), on_nonfinite="stop")
  assert_the_same(train(tmp_path, toy.MarkedBatches(bad=[8])), tmp_path, *straight, {7: 9})


def test_bad_batches_in_a_row_and_the_limit(tmp_path):
  many, other = tmp_path / "many", tmp_path / "other"
  bad = range(8, 12)
  message = r"at step 7 of stage toy, after 3 roll-backs .train.max_rollbacks. .step 6 is saved;"
  for _ in range(2):  # run again it ends at the same place
    with pytest.raises(UserError, match=message):
      train(many, toy.MarkedBatches(bad=bad))
  fitted = train(many, toy.MarkedBatches(bad=bad), max_rollbacks=4)
  assert_the_same(fitted, many, without(other, *range(6, 12)), other, {7: 7})
  assert fitted.rolled_back == [{"from": 9, "to": 6}, *[{"from": 7, "to": 6}] * 3]
  saved = sorted(path.name for path in many.glob("*.npz"))
  numbered = [f"bad_batch_toy_7-{number}.npz" for number in (1, 2, 3)]
  assert saved == [*numbered, "bad_batch_toy_9.npz"]


def test_roll_backs_at_several_places_are_counted_together(tmp_path):
  back, other = tmp_path / "back", tmp_path / "other"
  fitted = train(back, toy.MarkedBatches(bad=[4, 9]), max_rollbacks=2)
  # Batch 4 is step 5: back to 3. Batch 9 is then step 8: back to 6.
  assert_the_same(fitted, back, without(other, 3, 4, 8, 9), other, {4: 5, 7: 8})
  with pytest.raises(UserError, match="after 1 roll-backs"):
    train(tmp_path / "one", toy.MarkedBatches(bad=[4, 9]), max_rollbacks=1)


def test_a_checkpoint_of_a_broken_off_validation_is_made_whole(tmp_path):
  mesh = toy.make_mesh()
  real = toy.validation(toy.Toy(), toy.place(toy.frozen_tree(), mesh), mesh)
  seen = []

  def validate(tree):
    seen.append(tree)
    if len(seen) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return real(tree)

  back, other = tmp_path / "back", tmp_path / "other"
  given = {"checkpoint_every": 4, "validate": validate}
  with pytest.raises(Interrupted, match="at step 8"):
    train(back, toy.MarkedBatches(bad=[9]), **given)
  fitted = train(back, toy.MarkedBatches(bad=[9]), **given)
  assert_the_same(fitted, back, without(other, 8, 9, checkpoint_every=4), other, {9: 10})


@pytest.mark.parametrize("log_every", [5])
def test_the_line_after_it_is_there_however_seldom_lines_are(tmp_path, log_every):
  train(tmp_path, toy.MarkedBatches(bad=[8]), log_every=log_every)
  assert {step: line.get("rolled_back_from") for step, line in lines(tmp_path).items()} == {
    **{1: None, 5: None, 7: 9},
    **{10: None, 12: None},
  }


def test_two_processes_go_back_together(tmp_path):
  """And end as one process does."""
  given = (str(tmp_path / "two"), "data=2", "bad=8", "checkpoint_every=3")
  both = [start(toy.__file__, *given, **variables) for variables in cluster()]
  said = [process.communicate(timeout=HANGS_AFTER) for process in both]
  assert [process.returncode for process in both] == [0, 0], said
  mesh = toy.make_mesh(2)
  one = train(tmp_path / "one", toy.MarkedBatches(bad=[8]), mesh=mesh)
  assert f"done 12 {toy.digest(one.last)} {toy.digest(one.best)}" in said[0][0]
  assert lines(tmp_path / "two") == lines(tmp_path / "one")
  names = sorted(path.name for path in (tmp_path / "two").glob("*.npz"))
  assert names == ["bad_batch_toy_9_process0.npz", "bad_batch_toy_9_process1.npz"]
