"""A stage of more steps than it had: trained on to the bits of them all at once, or refused."""

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.training.checkpoints import Checkpoints
from frozen_jax.training.metrics import read_metrics
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from tests.training.toy import Batches, digest, train

CONSTANT = {"final_fraction": 1.0, "warmup_steps": 3}


def worsening(trained):
  """A validation that is the better, the earlier it is: the first step stays the best."""
  worsening.calls += 1
  return {"loss": float(worsening.calls)}


def bettering(trained):
  """A loss that falls with each validation of another tree."""
  return {"loss": -float(np.abs(np.asarray(trained["prompt"]["vectors"])).sum())}


def outcome(fitted, workdir):
  """All that is to be the same: trees, best step, validations, lines without the clock."""
  lines = [
    {name: value for name, value in line.items() if "second" not in name}
    for line in read_metrics(workdir)
  ]
  return (
    digest(fitted.last),
    digest(fitted.best),
    fitted.best_step,
    fitted.validation,
    fitted.tokens,
    lines,
  )


@pytest.fixture(scope="module")
def from_start(tmp_path_factory):
  """`from_start(steps, **how)`: the outcome of a stage of so many steps from the start."""
  known = {}

  def run(steps, **how):
    key = (steps, str(sorted(how.items(), key=str)))
    if key not in known:
      workdir = tmp_path_factory.mktemp("once")
      known[key] = outcome(train(workdir, steps, **how), workdir)
    return known[key]

  return run


@pytest.mark.parametrize("log_every, first", [(1, 4), (1, 7), (3, 4), (3, 6), (3, 7)])
def test_the_same_bits_as_from_the_start(tmp_path, from_start, first, log_every):
  """Validations are at 4, 8 and 12; the ends at 6 and 7 are on no grid."""
  how = CONSTANT | {"log_every": log_every}
  before = train(tmp_path, first, **how)
  assert before.validation[-1]["step"] == first
  assert outcome(train(tmp_path, 12, **how), tmp_path) == from_start(12, **how)


def test_a_best_tree_that_only_the_end_had_gives_way_to_the_one_before(tmp_path, from_start):
  how = CONSTANT | {"validate": bettering, "validate_first": True}
  assert train(tmp_path, 6, **how).best_step == 6
  assert outcome(train(tmp_path, 7, **how), tmp_path) == from_start(7, **how)
  assert outcome(train(tmp_path, 9, **how), tmp_path) == from_start(9, **how)


def test_what_was_out_of_patience_stays_so(tmp_path):
  worsening.calls = 0
  how = CONSTANT | {"validate": worsening, "patience": 1, "validate_every": 2}
  first = train(tmp_path, 10, **how)
  assert first.steps == 4
  more = train(tmp_path, 20, **how)
  assert (more.steps, digest(more.last), more.best_step) == (4, digest(first.last), 2)


def test_after_an_interruption(tmp_path, from_start):
  class Stops(Batches):
    def __next__(self):
      if self.taken == 5:
        raise KeyboardInterrupt
      return super().__next__()

  how = CONSTANT | {"checkpoint_every": 2}
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, 6, batches=Stops(), **how)
  assert outcome(train(tmp_path, 9, **how), tmp_path) == from_start(9, **how)


def test_fewer_steps_than_set_but_more_than_done(tmp_path, from_start):
  class Stops(Batches):
    def __next__(self):
      if self.taken == 3:
        raise KeyboardInterrupt
      return super().__next__()

  how = CONSTANT | {"checkpoint_every": 1}
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, 12, batches=Stops(), **how)
  assert outcome(train(tmp_path, 6, **how), tmp_path) == from_start(6, **how)


def test_within_the_warm_up_the_rates_do_not_depend_on_the_end(tmp_path, from_start):
  how = {"final_fraction": 0.1, "warmup_steps": 5}
  train(tmp_path, 5, **how)
  assert outcome(train(tmp_path, 9, **how), tmp_path) == from_start(9, **how)


@pytest.mark.parametrize(
  "steps, how",
  [
    (6, {"final_fraction": 0.1}),
    (6, {"final_fraction": 0.999, "warmup_steps": 5}),
    (20, {"final_fraction": 0.0}),
  ],
)
def test_rates_that_fall_over_all_steps_are_refused(tmp_path, steps, how):
  train(tmp_path, 6, **how)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  message = r"\(train.steps changed\); its learning rates were set .*config.init_from="
  with pytest.raises(UserError, match=message):
    train(tmp_path, 2 * steps, **how)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  assert train(tmp_path, 6, **how).steps == 6, "the checkpoint stays"


def test_not_with_fewer_steps_than_are_done(tmp_path):
  train(tmp_path, 6, **CONSTANT)
  with pytest.raises(UserError, match="train.steps changed"):
    train(tmp_path, 5, **CONSTANT)


@pytest.mark.parametrize("change", [{"warmup_steps": 2}, {"weight_decay": 0.1}])
def test_not_with_anything_else_changed(tmp_path, change):
  train(tmp_path, 6, **CONSTANT)
  with pytest.raises(UserError, match="train.steps"):
    train(tmp_path, 9, **CONSTANT | change)


def test_a_checkpoint_that_has_lost_the_tree_before_is_refused(tmp_path, monkeypatch):
  """As those are that were saved before such trees were kept."""
  how = CONSTANT | {"validate": bettering}
  save = Checkpoints.save

  def older(self, state, best, record, data, *_):
    return save(self, state, best, {k: v for k, v in record.items() if k != "earlier"}, data)

  monkeypatch.setattr(Checkpoints, "save", older)
  train(tmp_path, 6, **how)
  monkeypatch.undo()
  with pytest.raises(UserError, match="config.init_from="):
    train(tmp_path, 9, **how)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_same_until_is_what_the_schedule_does(warmup):
  for fraction in (0.0, 0.5, 1.0):
    one, other = (
      TrainSettings(steps=steps, warmup_steps=warmup, final_fraction=fraction) for steps in (20, 30)
    )
    rates = [
      [float(make_optimizer(settings, 1.0).rate(update)["learning_rate"]) for update in range(1, 9)]
      for settings in (one, other)
    ]
    for step in range(1, 9):
      assert one.same_until(step) == (rates[0][:step] == rates[1][:step]), (fraction, step)
