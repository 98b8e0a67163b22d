import jax
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.sharding import hosts
from frozen_jax.sharding.mesh import make_mesh
from tests.processes import HANGS_AFTER, cluster, start

PROGRAM = """
import sys
import jax, numpy as np
from frozen_jax.sharding import hosts
from frozen_jax.sharding.mesh import make_mesh
assert hosts.start(wait=600)
hosts.barrier("begin", timeout=600)
me = jax.process_index()
mesh = make_mesh(data=2)
index, count = hosts.host_shard(mesh)
rows = np.arange(8, dtype=np.int32).reshape(4, 2)[index * 2 : index * 2 + 2]
whole = hosts.global_batch({"tokens": rows}, mesh)["tokens"]
total = jax.jit(lambda x: (x * x).sum())(whole)
sums = hosts.whole_array(jax.jit(lambda x: x.sum(axis=1))(whole))
assert sums.tolist() == [1, 5, 9, 13] and hosts.whole_array(jax.jit(lambda x: x.sum())(whole)) == 28
said = hosts.gather_bytes(b"x" * (me + 1))
print("rows", whole.shape, int(total), said, hosts.is_first_host(), (index, count), flush=True)
hosts.barrier("end", timeout=600)
if me == 0:
  try:
    hosts.barrier("nobody else", timeout=2)
  except RuntimeError as error:
    print("error", error, flush=True)
else:
  import time
  time.sleep(4)
"""


def test_two_processes_share_a_batch_and_wait_for_each_other():
  processes = [start("-c", PROGRAM, **variables) for variables in cluster()]
  answers = [p.communicate(timeout=HANGS_AFTER) for p in processes]
  assert [p.returncode for p in processes] == [0, 0], answers
  squares = sum(i * i for i in range(8))
  for i, (out, _) in enumerate(answers):
    assert f"rows (4, 2) {squares} [b'x', b'xx'] {i == 0} ({i}, 2)" in out
  assert "error process 0 of 2 waited 2 s at 'nobody else'" in answers[0][0]


EXPLICIT = {"COORDINATOR_ADDRESS": "head:1234", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}


def test_what_the_environment_asks_for():
  alone = [{}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_NTASKS": "2"}]
  alone += [EXPLICIT | {"NUM_PROCESSES": "1", "PROCESS_ID": "0"}, {"OMPI_COMM_WORLD_SIZE": "1"}]
  assert [hosts.initialize_arguments(env) for env in alone] == [None] * len(alone)
  automatic = [{"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, {"OMPI_COMM_WORLD_SIZE": "8"}]
  automatic += [{"FROZEN_JAX_DISTRIBUTED": "auto"}]
  assert [hosts.initialize_arguments(env) for env in automatic] == [{}] * len(automatic)
  found = hosts.initialize_arguments(EXPLICIT | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"})
  assert (found["coordinator_address"], found["num_processes"], found["process_id"]) == (
    "head:1234",
    4,
    3,
  )


@pytest.mark.parametrize(
  "change, message",
  [
    ({"PROCESS_ID": ""}, "NUM_PROCESSES is set but not PROCESS_ID"),
    ({"PROCESS_ID": "4"}, "do not fit"),
    ({"NUM_PROCESSES": "two"}, "do not fit"),
    ({"COORDINATOR_ADDRESS": "head"}, "is not host:port"),
    ({"NUM_PROCESSES": "\u00b2", "PROCESS_ID": "0"}, "do not fit"),
    *(
      ({"COORDINATOR_ADDRESS": address}, "is not host:port")
      for address in ("head:port", ":1", "head:0", "head:99999", "http://head x:1")
    ),
  ],
)
def test_a_malformed_environment_is_the_users_error(change, message):
  with pytest.raises(UserError, match=message):
    hosts.initialize_arguments(EXPLICIT | change)


@pytest.mark.parametrize("value", ["1", "Auto", "true"])
def test_another_way_to_find_a_cluster_is_refused(value):
  with pytest.raises(UserError, match=f"FROZEN_JAX_DISTRIBUTED={value} is not known"):
    hosts.initialize_arguments({"FROZEN_JAX_DISTRIBUTED": value})


def test_without_a_cluster_it_says_what_is_missing(monkeypatch):
  def fails(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", fails)
  with pytest.raises(UserError, match="JAX knows no cluster .* unset FROZEN_JAX_DISTRIBUTED"):
    hosts.start({"FROZEN_JAX_DISTRIBUTED": "auto"})


def test_one_process_is_the_first_host_and_waits_for_nobody():
  assert hosts.start({}) is False
  assert hosts.is_first_host()
  hosts.barrier("alone", timeout=1)
  assert hosts.gather_bytes(b"me") == [b"me"]
  assert hosts.host_shard(make_mesh(data=4)) == (0, 1)


def test_a_batch_is_split_over_the_mesh():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  rows = np.arange(24, dtype=np.int32).reshape(8, 3)
  placed = hosts.global_batch({"tokens": rows}, mesh)["tokens"]
  np.testing.assert_array_equal(placed, rows)
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
  assert isinstance(placed, jax.Array)
  with pytest.raises(UserError, match="batch size 6 .* 4 or 8 would do"):
    hosts.global_batch({"tokens": rows[:6]}, mesh)
