"""The decoder on eight simulated devices equals the decoder on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from frozen_jax.backbones import decoder, loss
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import paths

pytestmark = pytest.mark.program

# Nine heads and three key/value heads, as SmolLM2 has: two devices cannot share them evenly.
CONFIG = DecoderConfig(
  vocab_size=96, width=72, layers=2, heads=9, kv_heads=3, head_dim=8, mlp_width=64, tied=True
)
MESH_AXIS = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "kv": "tensor", "mlp": "tensor"}


def mesh():
  devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
  return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def shard(params, mesh):
  def sharding(path):
    (axes,) = (a for rule, a in decoder.PARAM_AXES.items() if re.fullmatch(rule, path))
    return NamedSharding(mesh, PartitionSpec(*(MESH_AXIS.get(axis) for axis in axes)))

  flat = paths.flatten(params)
  return paths.unflatten({path: jax.device_put(a, sharding(path)) for path, a in flat.items()})


def objective(x, params, mask, targets):
  states = decoder.hidden(params, CONFIG, x, mask, remat="full")
  log_likelihood, _ = loss.target_log_likelihood(params, CONFIG, states, targets)
  return -(log_likelihood * mask).sum() / mask.sum()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_loss_and_gradient_on_eight_devices_equal_one():
  params = decoder.random_params(CONFIG, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (4, 10), 0, CONFIG.vocab_size)
  mask = (jnp.arange(10)[None] < jnp.array([10, 7, 4, 9])[:, None]).astype(jnp.int32)
  x = decoder.embed(params, CONFIG, tokens)
  run = jax.jit(jax.value_and_grad(objective))
  value, gradient = run(x, params, mask, tokens)

  grid = mesh()
  rows = NamedSharding(grid, PartitionSpec(("data", "fsdp")))
  sharded = [jax.device_put(a, rows) for a in (x, mask, tokens)]
  value8, gradient8 = run(sharded[0], shard(params, grid), sharded[1], sharded[2])
  np.testing.assert_allclose(value, value8, rtol=1e-5)
  np.testing.assert_allclose(gradient, gradient8, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_cached_steps_on_eight_devices_equal_one():
  params = decoder.random_params(CONFIG, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, CONFIG.vocab_size)
  mask = jnp.ones((4, 5), jnp.int32).at[1, :2].set(0)

  @jax.jit
  def run(params, tokens, mask):
    x = decoder.embed(params, CONFIG, tokens)
    _, cache = decoder.prefill(params, CONFIG, x[:, :5], mask, 1)
    return decoder.logits(params, CONFIG, decoder.step(params, CONFIG, x[:, 5:], cache)[0])

  grid = mesh()
  rows = NamedSharding(grid, PartitionSpec(("data", "fsdp")))
  sharded = run(shard(params, grid), jax.device_put(tokens, rows), jax.device_put(mask, rows))
  np.testing.assert_allclose(run(params, tokens, mask), sharded, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_continuations_on_eight_devices_equal_one():
  params = decoder.random_params(CONFIG, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (4, 11), 0, CONFIG.vocab_size)
  mask = jnp.ones((4, 5), jnp.int32).at[1, :2].set(0)

  @jax.jit
  def run(params, tokens, mask):
    x = decoder.embed(params, CONFIG, tokens)
    _, cache = decoder.prefill(params, CONFIG, x[:, :5], mask, 3, free_slots=0)
    position_ids = jnp.broadcast_to(jnp.tile(jnp.arange(3), 2), (4, 6))
    attention_mask = jnp.broadcast_to(jnp.kron(jnp.eye(2), jnp.tri(3)) > 0, (4, 6, 6))
    states = decoder.hidden_after_cache(
      params, CONFIG, x[:, 5:], cache, position_ids, attention_mask
    )
    return loss.target_log_likelihood(params, CONFIG, states, tokens[:, 5:])[0]

  grid = mesh()
  rows = NamedSharding(grid, PartitionSpec(("data", "fsdp")))
  sharded = run(shard(params, grid), jax.device_put(tokens, rows), jax.device_put(mask, rows))
  np.testing.assert_allclose(run(params, tokens, mask), sharded, atol=1e-5)
