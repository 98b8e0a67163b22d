"""The kernel for TPUs, interpreted, equals the attention of all platforms; gradients too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention, splash_attention
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import batch_sharding

CONFIG = DecoderConfig(
  vocab_size=8, width=32, layers=2, heads=4, kv_heads=2, head_dim=64, mlp_width=8
)
CONFIGS = {
  "grouped heads": CONFIG,
  "window": dataclasses.replace(CONFIG, kinds=("sliding",) * 2, window=5),
  "soft cap": dataclasses.replace(CONFIG, score_cap=5.0),
  "a key for each query head": dataclasses.replace(CONFIG, kv_heads=4),
}


def texts(config, rows=2, length=150):
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (rows, length, config.heads, config.head_dim)
  q, weights = (jax.random.normal(key, shape) for key in keys[:2])
  kv_shape = (*shape[:2], config.kv_heads, shape[3])
  k, v = (jax.random.normal(key, kv_shape) for key in keys[2:])
  mask = np.ones((rows, length), np.int32)
  mask[0, :20], mask[1, -30:] = 0, 0  # padding on both sides
  return (q, k, v), jnp.asarray(mask), weights * mask[..., None, None]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_attention_with_a_mask(name):
  config = CONFIGS[name]
  arrays, mask, weights = texts(config)
  full = attention.causal_mask(mask, mask.shape[1])
  if config.window:
    positions = jnp.arange(mask.shape[1])[None]
    full &= attention.window_mask(positions, positions, config.window)

  def expected(q, k, v):
    return (attention.attend(q, k, v, full, None, False, config.score_cap) * weights).sum()

  def found(q, k, v):
    return (splash_attention.attend(q, k, v, mask, config, interpret=True) * weights).sum()

  pairs = zip(
    *(jax.tree.leaves(jax.value_and_grad(f, (0, 1, 2))(*arrays)) for f in (expected, found)),
    strict=True,
  )
  for one, other in pairs:
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
def test_each_device_runs_it_on_its_rows_and_heads():
  arrays, mask, _ = texts(CONFIG, rows=4)
  run = jax.jit(lambda *a: splash_attention.attend(*a, CONFIG, interpret=True))
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  rows = [jax.device_put(a, batch_sharding(mesh)) for a in (*arrays, mask)]
  real = np.asarray(mask)[..., None, None]
  np.testing.assert_allclose(run(*arrays, mask) * real, run(*rows) * real, atol=1e-5)


@pytest.mark.parametrize("length, block, padded", [(2148, 384, 2304), (1024, 1024, 1024)])
def test_blocks_are_large_and_padding_is_small(length, block, padded):
  assert splash_attention._block_and_length(length) == (block, padded)
  for any_length in range(1, 5000, 37):
    block, padded = splash_attention._block_and_length(any_length)
    assert padded % block == 0 and any_length <= padded <= 1.1 * (any_length + 127)


@pytest.mark.parametrize(
  "changes, able",
  [
    ({}, True),
    ({"kinds": ("sliding",) * 2, "window": 4}, True),
    ({"kinds": ("sliding", "full"), "window": 4}, False),
    ({"positions": "alibi"}, False),
  ],
)
def test_what_it_cannot_compute_is_left_to_xla(changes, able):
  assert splash_attention.can_attend(dataclasses.replace(CONFIG, **changes)) is able
