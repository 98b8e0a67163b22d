import itertools
import logging
import os
import signal
import threading

import jax
import numpy as np
import pytest
import toy

from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training import loop
from frozen_jax.training.checkpoints import load_best
from frozen_jax.training.metrics import read_metrics

pytestmark = pytest.mark.program


def losses(folder, split="train"):
  return {e["step"]: e["loss"] for e in read_metrics(folder) if e["split"] == split}


def steps_of(folder, split="train"):
  return [e["step"] for e in read_metrics(folder) if e["split"] == split]


class Fails(Exception):
  pass


class FailingBatches(toy.Batches):
  """Breaks off before batch number `at`, as a killed process would."""

  def __init__(self, at):
    super().__init__()
    self.at = at

  def __next__(self):
    if self.taken == self.at:
      raise Fails
    return super().__next__()


class SignallingBatches(toy.Batches):
  """Sends this process a signal, twice, while it fetches the batch of step `at`."""

  def __init__(self, at, number=signal.SIGTERM):
    super().__init__()
    self.at, self.number = at, number

  def __next__(self):
    if self.taken + 1 == self.at:
      os.kill(os.getpid(), self.number)
      os.kill(os.getpid(), self.number)
    return super().__next__()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """A run of 12 steps that nothing interrupted: its folder and what it returned."""
  folder = tmp_path_factory.mktemp("reference")
  return folder, toy.train(folder, checkpoint_every=3)


def test_a_stage_from_start_to_end(reference):
  folder, fitted = reference
  assert fitted.steps == 12
  assert steps_of(folder) == list(range(1, 13))
  assert steps_of(folder, "validation") == [4, 8, 12]
  assert losses(folder, "validation")[12] < losses(folder, "validation")[4]
  assert [entry["step"] for entry in fitted.validation] == [4, 8, 12]
  assert fitted.seconds > 0 and fitted.tokens_per_second > 0
  assert fitted.tokens == sum(toy.batch(i)["mask"].sum() for i in range(12))
  assert os.listdir(folder / "checkpoints" / "toy") == ["00000012"]
  assert fitted.checkpoint_bytes < 200_000


def test_lines_carry_the_figures_of_the_step(reference):
  (first, *_) = read_metrics(reference[0])
  assert list(first)[:4] == ["stage", "step", "split", "loss"]
  assert {"grad_norm", "learning_rate", "targets", "tokens", "rows", "correct"} < set(first)


def test_a_complete_stage_returns_at_once(reference):
  folder, fitted = reference
  before = (folder / "metrics.jsonl").read_bytes()
  again = toy.train(folder, checkpoint_every=3, batches=FailingBatches(at=0))
  assert toy.digest(again.last) == toy.digest(fitted.last)
  assert toy.digest(again.best) == toy.digest(fitted.best)
  assert (again.best_step, again.best_metrics) == (fitted.best_step, fitted.best_metrics)
  assert (again.steps, again.tokens, again.validation) == (12, fitted.tokens, fitted.validation)
  assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("at", [2, 4, 11])
def test_broken_off_and_resumed_it_is_the_same_run(reference, tmp_path, at):
  with pytest.raises(Fails):
    toy.train(tmp_path, checkpoint_every=3, batches=FailingBatches(at))
  fitted = toy.train(tmp_path, checkpoint_every=3)
  assert losses(tmp_path) == losses(reference[0])
  assert losses(tmp_path, "validation") == losses(reference[0], "validation")
  assert steps_of(tmp_path) == list(range(1, 13))
  assert toy.digest(fitted.last) == toy.digest(reference[1].last)
  assert toy.digest(fitted.best) == toy.digest(reference[1].best)
  assert fitted.tokens == reference[1].tokens


def test_checkpoints_and_validations_do_not_change_the_training(reference, tmp_path):
  toy.train(tmp_path, validate=False, log_every=5)
  found = losses(tmp_path)
  assert sorted(found) == [1, 5, 10, 12]
  assert found == {step: losses(reference[0])[step] for step in found}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_current_step(reference, tmp_path, number):
  before = signal.getsignal(number)
  with pytest.raises(Interrupted, match="interrupted at step 5") as caught:
    toy.train(tmp_path, checkpoint_every=3, batches=SignallingBatches(5, number))
  assert caught.value.step == 5
  assert signal.getsignal(number) == before
  assert os.listdir(tmp_path / "checkpoints" / "toy") == ["00000005"]
  assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
  toy.train(tmp_path, checkpoint_every=3)
  assert losses(tmp_path) == losses(reference[0])


def signalling_validation(at, caught=False):
  """A validate function that SIGTERM interrupts the `at`-th time.

  caught: it makes an error of its own of what the signal raises, as a library might.
  """
  method, mesh = toy.Toy(), make_mesh()
  real, calls = toy.validation(method, toy.place(toy.frozen_tree(), mesh), mesh), itertools.count(1)

  def validate(trainable):
    if next(calls) == at:
      try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
          pass
      except BaseException as error:
        if caught:
          raise RuntimeError("no device") from error
        raise
      raise AssertionError("the validation went on")
    return real(trainable)

  return validate


@pytest.mark.parametrize("at, step, wrapped", [(1, 4, False), (2, 8, True), (3, 12, False)])
def test_sigterm_breaks_off_a_validation_which_is_made_up_for(
  reference, tmp_path, at, step, wrapped
):
  with pytest.raises(Interrupted) as caught:
    toy.train(tmp_path, checkpoint_every=3, validate=signalling_validation(at, wrapped))
  assert caught.value.step == step
  assert steps_of(tmp_path, "validation") == [4, 8, 12][: at - 1]
  fitted = toy.train(tmp_path, checkpoint_every=3)
  assert losses(tmp_path) == losses(reference[0])
  assert steps_of(tmp_path, "validation") == [4, 8, 12]
  assert losses(tmp_path, "validation") == losses(reference[0], "validation")
  assert toy.digest(fitted.best) == toy.digest(reference[1].best)
  toy.train(tmp_path, checkpoint_every=3)
  assert steps_of(tmp_path, "validation") == [4, 8, 12]


def test_sigterm_at_the_last_step_completes_the_stage_and_still_stops(tmp_path):
  with pytest.raises(Interrupted):
    toy.train(tmp_path, validate=False, batches=SignallingBatches(12))
  assert toy.train(tmp_path, validate=False, batches=FailingBatches(at=0)).steps == 12


def test_outside_the_main_thread_it_trains_without_the_handler(tmp_path):
  found = []
  thread = threading.Thread(target=lambda: found.append(toy.train(tmp_path, steps=2)))
  thread.start()
  thread.join()
  assert found[0].steps == 2


@pytest.mark.parametrize("where, at, kept", [("loss", 5, 3), ("loss", 2, None), ("gradient", 6, 3)])
def test_a_loss_that_is_not_finite(tmp_path, where, at, kept):
  stands = "no checkpoint had been saved" if kept is None else f"step {kept} is saved"
  figure = {"loss": "loss", "gradient": "grad_norm"}[where]
  message = rf"the {figure} is (nan|inf) at step {at} of stage toy \({stands}; its batch is in"
  with pytest.raises(UserError, match=message):
    method = toy.Exploding(range(at, 13), where)
    toy.train(tmp_path, method=method, checkpoint_every=3, validate=False)
  assert steps_of(tmp_path) == list(range(1, at))
  if kept is not None:
    tree, record = load_best(tmp_path, "toy")
    assert record["step"] == kept
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def scripted_validation(values):
  values = iter(values)
  return lambda trainable: {"loss": next(values), "accuracy": 50.0}


def test_the_best_tree_is_returned(tmp_path):
  validate = scripted_validation([3.0, 1.0, 2.0])
  fitted = toy.train(tmp_path, validate=validate)
  assert (fitted.best_step, fitted.best_metrics) == (8, {"loss": 1.0, "accuracy": 50.0})
  shorter = toy.train(tmp_path / "short", validate=None, steps=12, batches=FailingBatches(13))
  assert toy.digest(fitted.last) == toy.digest(shorter.last) != toy.digest(fitted.best)
  assert toy.digest(load_best(tmp_path, "toy")[0]) == toy.digest(fitted.best)


def test_the_best_may_be_that_of_the_highest_accuracy(tmp_path):
  """Of equal accuracies the lower loss; a loss that is no number is never the best."""
  figures = iter([(1.0, 50.0), (2.0, 75.0), (1.5, 75.0), (float("nan"), 100.0), (0.5, 50.0)])
  validate = lambda trainable: dict(zip(("loss", "accuracy"), next(figures), strict=True))
  fitted = toy.train(tmp_path, steps=20, validate=validate, best_by="accuracy")
  assert (fitted.best_step, fitted.best_metrics) == (12, {"loss": 1.5, "accuracy": 75.0})


def test_without_validation_the_last_tree_is_the_best(tmp_path):
  fitted = toy.train(tmp_path, validate=False)
  assert toy.digest(fitted.best) == toy.digest(fitted.last)
  assert (fitted.best_step, fitted.best_metrics, fitted.validation) == (12, {}, [])


def test_a_validation_before_the_first_step_can_be_the_best(tmp_path):
  validate = scripted_validation([0.5, 1.0, 1.0, 1.0])
  fitted = toy.train(tmp_path, validate=validate, validate_first=True)
  assert fitted.best_step == 0
  assert steps_of(tmp_path, "validation") == [0, 4, 8, 12]
  assert toy.digest(fitted.best) == toy.digest(toy.Toy().init(jax.random.key(0)))


def test_patience_ends_the_stage(tmp_path):
  validate = scripted_validation([3.0, 1.0, 2.0, float("nan"), 0.0])
  fitted = toy.train(tmp_path, steps=40, validate=validate, patience=2)
  assert (fitted.steps, fitted.best_step) == (16, 8)
  assert fitted.validation[-1] == {"step": 16, "loss": None, "accuracy": 50.0}
  again = toy.train(tmp_path, steps=40, validate=validate, patience=2, batches=FailingBatches(0))
  assert (again.steps, again.best_step) == (16, 8)


def test_a_batch_that_the_mesh_does_not_divide_is_the_users_error(tmp_path):
  with pytest.raises(UserError, match=r"train.batch_size 8 .*3 microbatches.*; 6 or 9 would do"):
    toy.train(tmp_path, accumulate=3)
  with pytest.raises(UserError, match=r"train.batch_size 6 .* 4 or 8 would do"):
    toy.train(tmp_path, mesh=make_mesh(data=2, fsdp=2), batches=toy.Batches(rows=6))


def test_another_run_in_the_same_workdir_is_refused_and_left_alone(reference):
  folder, _ = reference
  before = (folder / "metrics.jsonl").read_bytes()
  with pytest.raises(UserError, match="another configuration .rates.learning_rate changed"):
    toy.train(folder, learning_rate=0.5)
  with pytest.raises(UserError, match="another frozen model"):
    toy.train(folder, fingerprint="e" * 64)
  assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(reference, tmp_path, monkeypatch):
  save, calls = loop.Checkpoints.save, itertools.count(1)

  def full(self, *args):
    if next(calls) == 2:
      raise UserError("no space")
    return save(self, *args)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Checkpoints, "save", full)
    with pytest.raises(UserError, match="no space"):
      toy.train(tmp_path, checkpoint_every=3)
  toy.train(tmp_path, checkpoint_every=3)
  assert losses(tmp_path) == losses(reference[0])


def test_eight_devices_resume_on_one(reference, tmp_path):
  """Not bit by bit, but from the same checkpoint to the same losses within rounding."""
  with pytest.raises(Fails):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    toy.train(tmp_path, checkpoint_every=3, mesh=mesh, batches=FailingBatches(7))
  toy.train(tmp_path, checkpoint_every=3)
  for step, loss in losses(reference[0]).items():
    assert losses(tmp_path)[step] == pytest.approx(loss, rel=1e-5)


def test_without_a_terminal_lines_say_what_compiles_and_the_last_step(tmp_path, caplog, capfd):
  caplog.set_level(logging.INFO, logger="frozen_jax")
  toy.train(tmp_path, steps=3)
  said = [record.getMessage() for record in caplog.records]
  first, *_, last = [line for line in said if line.startswith("toy: ")]
  assert first == "toy: 0 of 3 steps, compiling"
  assert last.startswith("toy: 3 of 3 steps, loss ")
  assert "\r" not in capfd.readouterr().err


def test_arguments_that_make_no_sense(tmp_path):
  with pytest.raises(UserError, match="train.steps is 0; it must be at least 1"):
    toy.train(tmp_path, steps=0)
  with pytest.raises(ValueError, match="best_by is 'f1'; it is one of loss, accuracy"):
    toy.train(tmp_path, best_by="f1")
