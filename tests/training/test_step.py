import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.hosts import global_batch
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import gradients, make_train_step


def prepared(mesh=None, accumulate=1, dropout=0.1, **options):
  mesh = mesh or make_mesh()
  method = toy.Toy(dropout)
  settings = TrainSettings(**{"steps": 100, "warmup_steps": 0, "weight_decay": 0.0, **options})
  optimizer = make_optimizer(settings, 0.05)
  state = create_state(method.init(jax.random.key(0)), optimizer, jax.random.key(3), mesh)
  frozen = toy.place(toy.frozen_tree(), mesh)
  return make_train_step(method, optimizer, accumulate, mesh), state, frozen, mesh


def test_frozen_bits_stay_and_are_not_donated():
  step, state, frozen, mesh = prepared()
  before = checksum(frozen)
  for i in range(3):
    state, _ = step(state, frozen, global_batch(toy.batch(i), mesh))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
  assert checksum(frozen) == before


def test_the_state_is_donated_and_everything_trained_moves():
  step, state, frozen, mesh = prepared()
  before = jax.tree.map(np.array, state.trainable)
  after, _ = step(state, frozen, global_batch(toy.batch(0), mesh))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
  moved = jax.tree.map(lambda a, b: bool((np.array(a) != b).any()), after.trainable, before)
  assert all(jax.tree.leaves(moved))
  assert jax.tree.structure(after.trainable) == jax.tree.structure(before)
  assert int(after.step) == 1
  np.testing.assert_array_equal(jax.random.key_data(after.key), [0, 3])


def test_neither_moments_nor_gradients_of_frozen_weights_exist():
  """All that the optimizer holds are two moments of what is trained, and counters."""
  _, state, _, _ = prepared()
  trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
  held = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
  assert sum(size for size in held if size > 1) == 2 * trained


def test_the_caller_keeps_his_tree_and_the_masters_are_float32():
  mesh = make_mesh()
  given = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones((3,))}
  optimizer = make_optimizer(TrainSettings(steps=10), 1e-3)
  state = create_state(given, optimizer, jax.random.key(0), mesh)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
  jax.jit(lambda s: s, donate_argnums=0)(state)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_metrics_of_a_step():
  step, state, frozen, mesh = prepared()
  batch = toy.batch(0)
  _, metrics = step(state, frozen, global_batch(batch, mesh))
  assert set(metrics) == {
    *("loss", "grad_norm", "skipped", "learning_rate", "targets", "tokens", "rows", "correct")
  }
  assert int(metrics["targets"]) == batch["target_mask"].sum()
  assert int(metrics["tokens"]) == batch["mask"].sum()
  assert int(metrics["rows"]) == toy.ROWS
  assert float(metrics["learning_rate"]) == pytest.approx(0.05)


def test_grad_norm_is_taken_before_clipping():
  norms = []
  for limit in (0.0, 1e-3):
    step, state, frozen, mesh = prepared(clip_norm=limit)
    norms.append(float(step(state, frozen, global_batch(toy.batch(0), mesh))[1]["grad_norm"]))
  assert norms[0] == norms[1] > 0.1


def test_dropout_differs_from_step_to_step_and_not_between_runs():
  def losses():
    step, state, frozen, mesh = prepared(dropout=0.5, final_fraction=1.0)
    found = []
    for _ in range(3):
      state = state._replace(trainable=toy.Toy().init(jax.random.key(0)))
      state, metrics = step(state, frozen, global_batch(toy.batch(0), mesh))
      found.append(float(metrics["loss"]))
    return found

  once = losses()
  assert len(set(once)) == 3
  assert losses() == once


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_microbatches_give_the_update_of_the_big_batch(parts):
  """The targets differ from part to part, so means of means would not do."""
  method, frozen, batch = toy.Toy(dropout=0), toy.frozen_tree(), toy.batch(0)
  counts = batch["target_mask"].sum(-1).reshape(-1, parts).sum(0)
  assert len(set(counts.tolist())) > 1
  trainable = method.init(jax.random.key(0))
  key = jax.random.key(1)
  whole = gradients(method, trainable, frozen, batch, key)
  split = jax.jit(lambda t: gradients(method, t, frozen, batch, key, parts))(trainable)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, split)


def test_a_microbatch_without_targets_counts_for_nothing():
  method, frozen, batch = toy.Toy(dropout=0), toy.frozen_tree(), toy.batch(0)
  batch["target_mask"][::2] = 0
  trainable = method.init(jax.random.key(0))
  whole = gradients(method, trainable, frozen, batch, jax.random.key(1))
  split = gradients(method, trainable, frozen, batch, jax.random.key(1), 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, split)
  none = batch | {"target_mask": np.zeros_like(batch["target_mask"])}
  loss, _, grads = gradients(method, trainable, frozen, none, jax.random.key(1), 2)
  assert float(loss) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_microbatches_have_dropout_of_their_own():
  method, frozen = toy.Toy(dropout=0.5), toy.frozen_tree()
  row = {name: value[:1].repeat(8, 0) for name, value in toy.batch(0).items()}
  trainable, key = method.init(jax.random.key(0)), jax.random.key(1)
  found = {float(gradients(method, trainable, frozen, row, key, parts)[0]) for parts in (1, 2, 4)}
  assert len(found) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_agree_with_one(accumulate):
  """Losses over some steps, and the trained tree, to 1e-5."""
  results = []
  for mesh in (make_mesh(), make_mesh(data=2, fsdp=2, tensor=2)):
    step, state, frozen, mesh = prepared(mesh, accumulate)
    losses = []
    for i in range(4):
      state, metrics = step(state, frozen, global_batch(toy.batch(i), mesh))
      losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    results.append((np.array(losses), jax.tree.map(np.array, state.trainable)))
  assert not frozen["lm"]["embed"]["tokens"].is_fully_replicated
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


def test_gradients_of_eight_devices_agree_with_one():
  found = []
  for mesh in (make_mesh(), make_mesh(data=2, fsdp=2, tensor=2)):
    method, frozen = toy.Toy(dropout=0), toy.place(toy.frozen_tree(), mesh)
    batch = global_batch(toy.batch(5), mesh)
    trainable = method.init(jax.random.key(0))
    run = jax.jit(lambda t, f, b, m=method: gradients(m, t, f, b, jax.random.key(0))[::2])
    found.append(jax.tree.map(np.array, run(trainable, frozen, batch)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)
