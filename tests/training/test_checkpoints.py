"""Checkpoints: what is saved, restored, refused and left intact by a failed save."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from orbax.checkpoint import v1 as ocp

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.checkpoints import Checkpoints, load_best, read_record
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state

pytestmark = pytest.mark.program

DEPENDENCIES = {"train": TrainSettings(steps=10), "data": {"sha256": "ab", "shape": (1, 2)}}
RECORD = {"best": {"step": 2, "loss": 0.1}, "n": None}


def state_at(step, mesh=None, seed=0):
  optimizer = make_optimizer(TrainSettings(steps=10), 1e-3)
  trainable = toy.Toy().init(jax.random.key(seed))
  state = create_state(trainable, optimizer, jax.random.key(seed), mesh or make_mesh())
  return state._replace(step=state.step + step)


def opened(folder, stage="prompt", dependencies=DEPENDENCIES, fingerprint="aa", mesh=None):
  mesh = mesh or make_mesh()
  return Checkpoints(folder, stage, dependencies=dependencies, fingerprint=fingerprint, mesh=mesh)


def same_bits(a, b):
  raw = lambda x: (
    jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  )
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert one.dtype == other.dtype
    assert np.array(raw(one)).tobytes() == np.array(raw(other)).tobytes()


def folders(folder, stage="prompt"):
  return sorted(p.name for p in (folder / "checkpoints" / stage).iterdir())


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_all_bits_come_back_onto_the_current_mesh(tmp_path, sizes):
  state, best = state_at(5), toy.Toy().init(jax.random.key(9))
  size = opened(tmp_path).save(state, best, RECORD, b"\x00\xff position")
  mesh = make_mesh(*sizes)
  again = opened(tmp_path, mesh=mesh)
  restored = again.restore(state_at(0, mesh))
  same_bits(restored.state, state)
  same_bits(restored.best, best)
  assert again.latest() == 5
  assert again.data_position(restored.record) == b"\x00\xff position"
  assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(restored.state))
  assert restored.record["n"] is None and restored.record["best"] == RECORD["best"]
  on_disk = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
  assert size == again.size() == on_disk > 0


def test_nothing_to_restore(tmp_path):
  checkpoints = opened(tmp_path)
  assert checkpoints.restore(state_at(0)) is None
  assert (checkpoints.latest(), checkpoints.size()) == (None, 0)
  with pytest.raises(UserError, match="holds no checkpoint; train the stage 'prompt' first"):
    load_best(tmp_path, "prompt")


@pytest.mark.parametrize("data", [None, 3, {"a": [1, None]}, b"", "text"])
def test_data_positions_of_every_kind(tmp_path, data):
  checkpoints = opened(tmp_path)
  checkpoints.save(state_at(1), None, {}, data)
  found = checkpoints.data_position(checkpoints.restore(state_at(0)).record)
  assert found == data and type(found) is type(data)


def test_data_positions_of_other_hosts(tmp_path):
  checkpoints = opened(tmp_path)
  same, other = json.dumps({"json": 1}), json.dumps({"json": 2})
  assert checkpoints.data_position({"data": [same, same]}) == 1
  with pytest.raises(UserError, match="saved by 2 hosts"):
    checkpoints.data_position({"data": [same, other]})


def test_the_newest_replaces_the_older(tmp_path):
  checkpoints = opened(tmp_path)
  for step in (2, 4, 10):
    checkpoints.save(state_at(step), None, {}, step)
  assert folders(tmp_path) == ["00000010"]
  assert checkpoints.latest() == 10


def test_one_that_is_kept_stays_beside_the_newest(tmp_path):
  """And it can be restored, also where its step was saved twice."""
  checkpoints = opened(tmp_path)
  for step, kept in ((3, 0), (3, 3), (5, 3), (4, 3)):
    checkpoints.save(state_at(step), None, {"kept": kept}, step, kept=kept)
  assert folders(tmp_path) == ["00000003-1", "00000004"] and checkpoints.steps() == [3, 4]
  kept = checkpoints.restore(state_at(0), step=3)
  same_bits(kept.state, state_at(3))
  assert (kept.record["kept"], checkpoints.restore(state_at(0)).record["step"]) == (3, 4)
  assert checkpoints.restore(state_at(0), step=5) is None
  checkpoints.save(state_at(6), None, {}, 6, kept=6)
  assert folders(tmp_path) == ["00000006"]


def test_a_step_can_be_saved_again(tmp_path):
  """After an interruption in a validation: same step, more in the record."""
  checkpoints = opened(tmp_path)
  for times in range(12):
    checkpoints.save(state_at(3), None, {"times": times}, None)
    assert checkpoints.restore(state_at(0)).record["times"] == times
  assert folders(tmp_path) == ["00000003-11"]
  checkpoints.save(state_at(4), None, {}, None)
  assert folders(tmp_path) == ["00000004"]


def test_only_what_is_trained_is_stored(tmp_path):
  """By the names in the checkpoint, and by its size alongside a frozen tree of 4 MB."""
  trainable = toy.Toy().init(jax.random.key(0))
  frozen = {"lm": {"layers": jnp.zeros((1000, 1000))}}
  size = opened(tmp_path).save(state_at(1), trainable, RECORD, None)
  found = ocp.checkpointables_metadata(tmp_path / "checkpoints/prompt/00000001").metadata
  assert set(found) == {"state", "best"}
  leaves = jax.tree.leaves(found["state"]["trainable"]) + jax.tree.leaves(found["best"])
  assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 2 * sum(
    leaf.size for leaf in jax.tree.leaves(trainable)
  )
  assert set(found["state"]["trainable"]) == set(found["best"]) == {"connector", "prompt"}
  assert size < frozen["lm"]["layers"].nbytes / 50


def test_another_frozen_model_is_refused(tmp_path):
  opened(tmp_path).save(state_at(1), None, {}, None)
  with pytest.raises(UserError, match=r"another frozen model \(fingerprint aa, this one is bb\)"):
    opened(tmp_path, fingerprint="bb").restore(state_at(0))


@pytest.mark.parametrize(
  "change, names",
  [
    ({"train": TrainSettings(steps=11, patience=1)}, "train.steps, train.patience changed"),
    ({"data": {"sha256": "cd", "shape": (1, 2)}}, "data.sha256 changed"),
    ({"data": {"sha256": "ab", "shape": (1, 3)}}, "data.shape changed"),
    ({"new": 1}, "new changed"),
  ],
)
def test_a_run_of_another_configuration_is_refused(tmp_path, change, names):
  opened(tmp_path).save(state_at(1), None, {}, None)
  with pytest.raises(UserError, match=f"another configuration .{names}"):
    opened(tmp_path, dependencies=DEPENDENCIES | change).restore(state_at(0))


@dataclasses.dataclass(frozen=True)
class LaterSettings(TrainSettings):
  """The section of a later version, with one more field."""

  momentum: float = setting(0.0, "a new field")


@pytest.mark.parametrize(
  "change",
  [
    {"data": {"sha256": "ab", "shape": [1, 2]}},
    {"train": LaterSettings(steps=10, log_every=3)},
    {"prompt": TrainSettings()},
  ],
)
def test_what_makes_no_difference_is_not_refused(tmp_path, change):
  opened(tmp_path).save(state_at(1), None, {}, None)
  assert opened(tmp_path, dependencies=DEPENDENCIES | change).restore(state_at(0))


def test_half_written_saves_are_ignored_and_cleared(tmp_path):
  opened(tmp_path).save(state_at(1), None, {}, None)
  stage = tmp_path / "checkpoints" / "prompt"
  for name in ("00000002.orbax-checkpoint-tmp", "00000000.removed"):
    (stage / name / "state").mkdir(parents=True)
  assert opened(tmp_path, stage="other").latest() is None
  assert len(folders(tmp_path)) == 3
  checkpoints = opened(tmp_path)
  assert folders(tmp_path) == ["00000001"]
  assert int(checkpoints.restore(state_at(0)).state.step) == 1


FULL = OSError(errno.ENOSPC, "No space left on device")


NATIVE = f"RESOURCE_EXHAUSTED: writing {'d/' * 200}: [OS error 28: No space left on device]"


@pytest.mark.parametrize("error", [FULL, ValueError(NATIVE)], ids=["python", "native"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, error):
  checkpoints, good = opened(tmp_path), state_at(1, seed=4)
  checkpoints.save(good, None, {}, 1)

  def fails(path, *_, **__):
    (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(ocp, "save_checkpointables", fails)
    with pytest.raises(
      UserError,
      match=r"step 2 could not .* \(No space left on device\); the checkpoint of step 1 is",
    ):
      checkpoints.save(state_at(2), None, {}, 2)
  assert folders(tmp_path) == ["00000001"]
  same_bits(opened(tmp_path).restore(state_at(0)).state, good)
  checkpoints.save(state_at(2), None, {}, 2)
  assert folders(tmp_path) == ["00000002"]


def test_a_disk_that_fills_while_orbax_writes(tmp_path, monkeypatch, capfd):
  """Deeper down: Orbax's own last write fails in one of its threads; no traceback is printed."""
  from etils import epath

  checkpoints = opened(tmp_path)
  checkpoints.save(state_at(1), None, {}, 1)
  cls = type(epath.Path(tmp_path))
  write = cls.write_text

  def full(self, *args, **kwargs):
    if ".orbax-checkpoint-tmp" in str(self):
      raise FULL
    return write(self, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(cls, "write_text", full)
    with pytest.raises(UserError, match="No space left on device.*checkpoint of step 1 is intact"):
      checkpoints.save(state_at(2), None, {}, 2)
  assert "Traceback" not in capfd.readouterr().err
  assert folders(tmp_path) == ["00000001"]
  assert int(opened(tmp_path).restore(state_at(0)).state.step) == 1


def test_a_fault_of_ours_is_not_blamed_on_the_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(ocp, "save_checkpointables", lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    opened(tmp_path).save(state_at(1), None, {}, None)


def test_what_a_failed_read_says_is_its_first_cause(tmp_path, monkeypatch):
  """Orbax says of whatever fails that a handler is incompatible."""
  opened(tmp_path).save(state_at(1), None, {}, None)

  def fail(*_, **__):
    try:
      raise OSError("the disk is gone")
    except OSError as error:
      raise KeyError("incompatible handler") from error

  monkeypatch.setattr(ocp, "load_checkpointables", fail)
  with pytest.raises(
    UserError, match=r"cannot be read \(OSError: the disk is gone\); run the same command"
  ):
    opened(tmp_path).restore(state_at(0))


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_the_users_error(tmp_path, damage):
  opened(tmp_path).save(state_at(1), None, {}, None)
  path = tmp_path / "checkpoints/prompt/00000001"
  for file in path.rglob("*"):
    if file.is_file() and (damage == "truncate" or file.name == "_CHECKPOINT_METADATA"):
      file.write_bytes(file.read_bytes()[:10]) if damage == "truncate" else file.unlink()
  with pytest.raises(UserError, match="00000001 cannot be read .*, remove that folder"):
    opened(tmp_path).restore(state_at(0))
  with pytest.raises(UserError, match="00000001 cannot be read"):
    load_best(tmp_path, "prompt")


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_the_best_tree_is_read_without_knowing_its_structure(tmp_path, mesh):
  state, best = state_at(5), toy.Toy().init(jax.random.key(9))
  opened(tmp_path).save(state, best, RECORD, None)
  mesh = mesh and make_mesh(*mesh)
  tree, record = load_best(tmp_path, "prompt", mesh)
  same_bits(tree, best)
  assert record["frozen_fingerprint"] == "aa" and record["step"] == 5
  assert record == read_record(tmp_path / "checkpoints/prompt/00000005")
  if mesh is not None:
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(tree))


def test_without_a_validation_the_last_tree_is_the_best(tmp_path):
  state = state_at(5)
  checkpoints = opened(tmp_path)
  checkpoints.save(state, None, {}, None)
  assert checkpoints.restore(state_at(0)).best is None
  same_bits(load_best(tmp_path, "prompt")[0], state.trainable)
