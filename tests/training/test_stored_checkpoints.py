"""Checkpoints on a store: the bits that come back, what a kill leaves, several hosts."""

import jax
import numpy as np
import pytest
import toy

from frozen_jax.core.errors import StoreError
from frozen_jax.core.object_store import StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.checkpoint_folders import complete_checkpoints, saved_step
from frozen_jax.training.checkpoints import Checkpoints, load_best, read_record
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from tests.processes import HANGS_AFTER, ROOT, cluster, start

pytestmark = pytest.mark.program

# Saves step 3 twice and restores it, on each of two hosts with a cache of its own.
TWO_HOSTS = """
import sys
import jax
from frozen_jax.sharding import hosts
hosts.start()
sys.path.insert(0, sys.argv[2])
import test_stored_checkpoints as test
from frozen_jax.sharding.mesh import make_mesh
mesh = make_mesh(2)
saved = test.opened(sys.argv[1], mesh)
for _ in range(2):
  assert saved.save(test.state_at(3, mesh), None, {}, f"host {jax.process_index()}") > 0
restored = saved.restore(test.state_at(0, mesh))
test.same_bits(restored.state, test.state_at(3, mesh))
assert saved.data_position(restored.record) == f"host {jax.process_index()}"
"""


def state_at(step, mesh=None):
  optimizer = make_optimizer(TrainSettings(steps=10), 1e-3)
  trainable = toy.Toy().init(jax.random.key(0))
  state = create_state(trainable, optimizer, jax.random.key(0), mesh or make_mesh())
  return state._replace(step=state.step + step)


def opened(workdir, mesh=None):
  mesh = mesh or make_mesh()
  dependencies = {"train": TrainSettings(steps=10)}
  return Checkpoints(workdir, "prompt", dependencies=dependencies, fingerprint="aa", mesh=mesh)


def same_bits(a, b):
  is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  raw = lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert one.dtype == other.dtype and raw(one).tobytes() == raw(other).tobytes()


@pytest.fixture
def workdir(store, request):
  return user_path(f"{store.url}/{request.node.name}")


def names(workdir):
  return [path.name for path in (workdir / "checkpoints" / "prompt").iterdir()]


def test_all_bits_come_back_and_the_one_before_goes(workdir):
  best, checkpoints = toy.Toy().init(jax.random.key(9)), opened(workdir)
  assert checkpoints.latest() is None and checkpoints.restore(state_at(0)) is None
  checkpoints.save(state_at(3), None, {}, b"")
  size = checkpoints.save(state_at(5), best, {"best": {"step": 2}}, b"\x00\xff position")
  assert names(workdir) == ["00000005"] and opened(workdir).latest() == 5
  mesh = make_mesh(2, 2, 2)
  restored = opened(workdir, mesh).restore(state_at(0, mesh))
  same_bits(restored.state, state_at(5))
  same_bits(restored.best, best)
  assert opened(workdir).data_position(restored.record) == b"\x00\xff position"
  assert size == opened(workdir).size() == sum(one.st_size for one in workdir.files().values())
  same_bits(load_best(workdir, "prompt")[0], best)
  (path,) = complete_checkpoints(workdir / "checkpoints" / "prompt")
  assert read_record(path)["step"] == saved_step(workdir) == saved_step(str(workdir)) == 5


def test_one_that_is_kept_stays(workdir):
  checkpoints = opened(workdir)
  for step in (3, 5, 6):
    checkpoints.save(state_at(step), None, {}, b"", kept=3)
  assert names(workdir) == ["00000003", "00000006"]
  same_bits(checkpoints.restore(state_at(0), step=3).state, state_at(3))


def test_what_is_half_uploaded_or_half_removed_is_none_and_goes(workdir, monkeypatch):
  opened(workdir).save(state_at(3), None, {}, b"")
  upload = StorePath.upload

  def failing(path, source):
    if path.name == "_METADATA":
      raise StoreError("gone")
    upload(path, source)

  with monkeypatch.context() as patched, pytest.raises(StoreError, match="gone"):
    patched.setattr(StorePath, "upload", failing)
    opened(workdir).save(state_at(5), None, {}, b"")
  assert names(workdir) == ["00000003", "00000005"]
  assert complete_checkpoints(workdir / "checkpoints" / "prompt")[-1].name == "00000003"
  again = opened(workdir)  # as the next run does
  assert names(workdir) == ["00000003"] and again.latest() == 3
  (workdir / "checkpoints" / "prompt" / "00000003" / "commit_success.txt").unlink()
  assert saved_step(workdir) == 0 and opened(workdir).latest() is None
  assert not workdir.exists()


def test_two_hosts_without_a_disk_in_common(store, workdir, tmp_path):
  if store.scheme == "s3":
    pytest.skip("what differs is below: one store will do")
  here = str(ROOT / "tests" / "training")
  processes = [
    start("-c", TWO_HOSTS, workdir, here, **variables, FROZEN_JAX_CACHE=str(tmp_path / name))
    for name, variables in zip("ab", cluster(), strict=True)
  ]
  said = [process.communicate(timeout=HANGS_AFTER)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert names(workdir) == ["00000003-1"]
  same_bits(opened(workdir).restore(state_at(0)).state, state_at(3))  # one process reads it
