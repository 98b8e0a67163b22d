"""Updates that are not applied, for their loss or gradient is no number, and data that stalls."""

import logging
import time

import jax
import numpy as np
import pytest
import toy

from frozen_jax.core.errors import UserError
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import global_batch
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.metrics import read_metrics
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import make_train_step
from frozen_jax.training.timed_batches import TimedBatches

BAD = ["loss", "gradient", 1e4]  # of `toy.Exploding`


def lines(folder):
  return {e["step"]: e for e in read_metrics(folder) if e["split"] == "train"}


def stepped(method, count):
  """The states after each of the first steps, as numpy, and their metrics."""
  mesh, optimizer = make_mesh(), make_optimizer(TrainSettings(steps=20, warmup_steps=2), 0.05)
  state = create_state(method.init(jax.random.key(0)), optimizer, jax.random.key(7), mesh)
  frozen = toy.place(toy.frozen_tree(), mesh)
  before = checksum(frozen)
  step, seen = make_train_step(method, optimizer), []
  for index in range(count):
    state, metrics = step(state, frozen, global_batch(toy.batch(index), mesh))
    seen.append((jax.tree.map(np.array, (state.trainable, state.opt_state)), dict(metrics)))
    assert int(state.step) == index + 1
  assert checksum(frozen) == before
  return seen


@pytest.mark.parametrize("where", BAD)
def test_the_step_leaves_all_as_it_was_and_the_next_one_goes_on(where):
  (_, first), (two, second), (three, third), (four, fourth) = stepped(toy.Exploding([3], where), 4)
  assert [int(metrics["skipped"]) for metrics in (first, second, third, fourth)] == [0, 0, 1, 0]
  jax.tree.map(np.testing.assert_array_equal, three, two)
  assert toy.digest(four) != toy.digest(three)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(four))
  # The schedule counts what is applied: the fourth step makes the third update.
  assert float(fourth["learning_rate"]) == float(third["learning_rate"])


def test_a_healthy_run_is_the_same_whatever_the_settings(tmp_path):
  stop, skip = tmp_path / "stop", tmp_path / "skip"
  fitted = [toy.train(stop), toy.train(skip, on_nonfinite="skip", max_skipped=3)]
  assert toy.digest(fitted[0].last) == toy.digest(fitted[1].last)
  assert fitted[0].skipped == fitted[1].skipped == 0
  assert all("skipped" not in line for line in lines(skip).values())


@pytest.mark.parametrize("where", BAD)
def test_it_stops_with_the_batch_saved_and_goes_on_from_there_by_skipping(tmp_path, where):
  """Stopped and resumed in another way it is the run that was never stopped."""
  method = toy.Exploding([5, 6, 9], where)
  with pytest.raises(UserError) as stopped:
    toy.train(tmp_path / "stopped", method=method, checkpoint_every=3)
  path = tmp_path / "stopped" / "bad_batch_toy_5.npz"
  assert f"at step 5 of stage toy (step 3 is saved; its batch is in {path})" in str(stopped.value)
  assert "train.on_nonfinite=skip" in str(stopped.value)
  saved = dict(np.load(path))
  assert int(saved.pop("step")) == 5
  figures = {name: float(saved.pop(name)) for name in ("loss", "grad_norm")}
  assert not all(np.isfinite(value) for value in figures.values()) or figures["loss"] > 1000
  assert saved.keys() == toy.batch(4).keys()
  for name, value in toy.batch(4).items():
    np.testing.assert_array_equal(saved[name], value)

  fitted = toy.train(tmp_path / "stopped", method=method, checkpoint_every=3, on_nonfinite="skip")
  whole = toy.train(tmp_path / "whole", method=method, on_nonfinite="skip")
  assert toy.digest(fitted.last) == toy.digest(whole.last)
  assert toy.digest(fitted.best) == toy.digest(whole.best)
  assert fitted.skipped == whole.skipped == 3
  assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
  skipped = [step for step, line in lines(tmp_path / "whole").items() if line.get("skipped")]
  assert skipped == [5, 6, 9]
  if where == "loss":
    assert lines(tmp_path / "whole")[5]["loss"] is None
  saved = [path.name for path in tmp_path.glob("whole/*.npz")]
  assert sorted(saved) == ["bad_batch_toy_5.npz", "bad_batch_toy_9.npz"], "the first in a row"


@pytest.mark.parametrize("limit, at", [(1, 4), (3, 6)])
def test_too_many_in_a_row_end_the_stage(tmp_path, limit, at):
  method = toy.Exploding(range(4, 13))
  how = {"method": method, "on_nonfinite": "skip", "max_skipped": limit, "checkpoint_every": 2}
  message = f"at step {at} of stage toy, and so were {limit} in a row .train.max_skipped."
  with pytest.raises(UserError, match=message):
    toy.train(tmp_path, **how)
  # Run again it counts on from what the checkpoint says, and ends at the same step.
  with pytest.raises(UserError, match=message):
    toy.train(tmp_path, **how)


def test_a_limit_of_zero_is_none(tmp_path):
  fitted = toy.train(tmp_path, method=toy.Exploding([5], 1e4), max_loss=0.0)
  assert fitted.skipped == 0 and lines(tmp_path)[5]["loss"] > 1000


def test_where_the_batch_cannot_be_written_the_fault_is_said_all_the_same(tmp_path):
  (tmp_path / "bad_batch_toy_2.npz").mkdir()
  with pytest.raises(UserError, match=r"the loss is nan at step 2 .*its batch is lost: cannot"):
    toy.train(tmp_path, method=toy.Exploding([2]))


class Stalling(toy.Batches):
  """Takes its time for one batch."""

  def __init__(self, at, seconds):
    super().__init__()
    self.at, self.seconds = at, seconds

  def __next__(self):
    if self.taken == self.at:
      time.sleep(self.seconds)
    return super().__next__()


@pytest.mark.parametrize("at", [0, 3])
def test_a_source_that_stalls_is_named_and_then_ends_the_stage(tmp_path, caplog, at):
  caplog.set_level(logging.WARNING, logger="frozen_jax")
  begun = time.monotonic()
  with pytest.raises(UserError, match="no batch has come from hf:slow/train for 1 s; see whether"):
    toy.train(tmp_path, batches=Stalling(at, 60), source="hf:slow/train", timeout=0.5)
  assert time.monotonic() - begun < 30
  warned = [record.getMessage() for record in caplog.records if "no batch" in record.getMessage()]
  assert warned == ["no batch has come from hf:slow/train for 0.5 s; waiting"]
  assert toy.train(tmp_path).steps == 12


def test_a_source_that_is_slow_is_named_and_waited_for(tmp_path, caplog):
  caplog.set_level(logging.WARNING, logger="frozen_jax")
  toy.train(tmp_path / "slow", batches=Stalling(2, 1.0), source="slow.jsonl", timeout=0.6)
  assert "no batch has come from slow.jsonl" in caplog.text
  toy.train(tmp_path / "quick")
  assert lines(tmp_path / "slow") == lines(tmp_path / "quick")


def test_without_a_timeout_and_in_errors_the_batches_are_as_they_are():
  taken = [next(TimedBatches(toy.Batches(), "data", timeout)) for timeout in (0.0, 5.0)]
  jax.tree.map(np.testing.assert_array_equal, *taken)

  class Broken(toy.Batches):
    def __next__(self):
      raise UserError("the file is damaged")

  for timeout in (0.0, 5.0):
    with pytest.raises(UserError, match="the file is damaged"):
      next(TimedBatches(Broken(), "data", timeout))
