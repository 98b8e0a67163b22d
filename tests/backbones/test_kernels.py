"""The kernels of TPUs and GPUs, on a CPU, equal the attention of all platforms; gradients too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import attention, kernels, splash_attention
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.kernels import Kernel
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import batch_sharding

CONFIG = DecoderConfig(
  vocab_size=8, width=32, layers=2, heads=4, kv_heads=2, head_dim=64, mlp_width=8
)
ENCODER = EncoderConfig(vocab_size=8, width=32, layers=2, heads=4, head_dim=64, mlp_width=8)
MIXED = {"kinds": ("sliding", "full"), "window": 5}


def texts(segments, kv_heads=2, heads=4, prefix=0):
  """Queries, keys and values [B, T, ., 64], and weights of the result's numbers, 0 at padding."""
  keys = jax.random.split(jax.random.key(0), 4)
  rows, length = segments.shape
  shape = (rows, length - prefix, heads, 64)
  q, weights = (jax.random.normal(key, shape) for key in keys[:2])
  k, v = (jax.random.normal(key, (rows, length, kv_heads, 64)) for key in keys[2:])
  return (q, k, v), weights * (segments[:, prefix:, None, None] > 0)


def padded(*ends, length=150):
  """Segments: each row's real tokens from one place to another."""
  places = np.arange(length)
  return jnp.asarray([(first <= places) & (places < last) for first, last in ends], jnp.int32)


BOTH_SIDES = padded((20, 150), (0, 120))
RIGHT = padded((0, 150), (0, 120))
SEVERAL = padded((0, 90), (10, 150)) + padded((60, 140), (70, 140))  # 1 1 2 2 and padding

SPLASH = {
  "grouped heads": (Kernel("splash"), {}),
  "a window": (Kernel("splash", (5,)), {}),
  "a cap, the second kind": (Kernel("splash", (5, None), soft_cap=5.0), {"kind_id": 1}),
  "the first kind": (Kernel("splash", (5, None, None)), {"kind_id": 0}),
  "a key for each query head": (Kernel("splash"), {"kv_heads": 4}),
  "a prefix": (Kernel("splash"), {"prefix": 3, "segments": padded((0, 150), (0, 120))}),
  "both ways": (Kernel("splash", is_causal=False), {"segments": SEVERAL}),
  "both ways in a window": (
    Kernel("splash", (None, 5), is_causal=False),
    {"segments": SEVERAL, "kind_id": 1},
  ),
}
CUDNN = {
  "grouped heads": (Kernel("cudnn"), {"segments": RIGHT}),
  "a window": (Kernel("cudnn", (5,)), {"segments": RIGHT}),
  "the second kind": (Kernel("cudnn", (5, None)), {"segments": RIGHT, "kind_id": 1}),
  "a prefix": (Kernel("cudnn", (7,)), {"segments": RIGHT, "prefix": 3}),
}
CASES = [pytest.param(*case, id=f"splash, {name}") for name, case in SPLASH.items()]
CASES += [pytest.param(*case, id=f"cudnn, {name}") for name, case in CUDNN.items()]


@pytest.mark.parametrize("kernel, case", CASES)
def test_a_kernel_equals_attention_with_a_mask(kernel, case):
  segments, prefix = case.get("segments", BOTH_SIDES), case.get("prefix", 0)
  kind_id = jnp.int32(case.get("kind_id", 0))
  arrays, weights = texts(segments, case.get("kv_heads", 2), prefix=prefix)
  window = kernel.windows[int(kind_id)]
  mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
  distance = jnp.arange(mask.shape[1])[:, None] - jnp.arange(mask.shape[1])
  if kernel.is_causal:
    mask &= (distance >= 0) & (distance < (window or mask.shape[1]))
  else:
    mask &= jnp.abs(distance) <= (window or mask.shape[1])
  kernel = dataclasses.replace(kernel, interpret=True)

  def expected(q, k, v):
    result = attention.attend(q, k, v, mask[:, prefix:], None, False, kernel.soft_cap)
    return (result * weights).sum()

  def found(q, k, v):
    return (kernel.attend(q, k, v, segments, kind_id) * weights).sum()

  run = lambda f: jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays))
  for one, other in zip(run(expected), run(found), strict=True):
    np.testing.assert_allclose(one, other, rtol=3e-5, atol=3e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_each_device_runs_it_on_its_rows_and_heads(name):
  segments = padded(*((0, 100 + 10 * n) for n in range(4)))
  arrays, weights = texts(segments)
  kernel = Kernel(name, (5, None), interpret=True)

  def total(segments, weights, *arrays):
    return (kernel.attend(*arrays, segments, jnp.int32(1)) * weights).sum()

  run = jax.jit(jax.value_and_grad(total, (2, 3, 4)))
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  given = (segments, weights, *arrays)
  split = [jax.device_put(a, batch_sharding(mesh)) for a in given]
  for one, other in zip(jax.tree.leaves(run(*given)), jax.tree.leaves(run(*split)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length, block, whole", [(2148, 384, 2304), (1024, 1024, 1024)])
def test_blocks_are_large_and_padding_is_small(length, block, whole):
  assert splash_attention._block_and_length(length) == (block, whole)
  for any_length in range(1, 5000, 37):
    block, whole = splash_attention._block_and_length(any_length)
    assert whole % block == 0 and any_length <= whole <= 1.1 * (any_length + 127)


@pytest.fixture
def on(monkeypatch):
  """Programs are for the platform that is given, whose GPUs have cuDNN's attention."""

  def set_platform(platform):
    monkeypatch.setattr(kernels, "platform_of", lambda array: platform)
    monkeypatch.setattr(kernels, "has_cudnn_attention", lambda: True)

  return set_platform


@pytest.mark.parametrize(
  "changes, on_tpu, on_gpu",
  [
    ({}, Kernel("splash"), Kernel("cudnn")),
    ({"kinds": ("sliding",) * 2, "window": 4}, Kernel("splash", (4,)), Kernel("cudnn", (4,))),
    (MIXED, Kernel("splash", (5, None)), Kernel("cudnn", (5, None))),
    (MIXED | {"window": 99}, Kernel("splash", (None, None)), Kernel("cudnn", (None, None))),
    ({"score_cap": 9.0}, Kernel("splash", soft_cap=9.0), None),
    ({"head_dim": 256}, Kernel("splash"), None),
    ({"head_dim": 36}, Kernel("splash"), None),
    ({"positions": "alibi"}, None, None),
  ],
)
def test_what_a_kernel_cannot_compute_is_left_to_xla(changes, on_tpu, on_gpu, on):
  config, weight = dataclasses.replace(CONFIG, **changes), jnp.zeros(1, jnp.bfloat16)
  for platform, expected in {"tpu": on_tpu, "gpu": on_gpu, "cpu": None}.items():
    on(platform)
    assert kernels.of_decoder(config, weight, 50) == expected


def test_gpus_without_cudnn_and_float32_are_left_to_xla(on, monkeypatch):
  on("gpu")
  assert kernels.of_decoder(CONFIG, jnp.zeros(1), 50) is None
  monkeypatch.setattr(kernels, "has_cudnn_attention", lambda: False)
  assert kernels.of_decoder(CONFIG, jnp.zeros(1, jnp.bfloat16), 50) is None


@pytest.mark.parametrize(
  "changes, length, expected",
  [
    ({}, 512, Kernel("splash", is_causal=False)),
    ({}, 128, None),
    ({"positions": "buckets"}, 512, None),
    ({"local": (False, True), "window": 64}, 512, Kernel("splash", (None, 64), is_causal=False)),
  ],
)
def test_encoders_have_a_kernel_on_tpus(changes, length, expected, on):
  config = dataclasses.replace(ENCODER, **changes)
  for platform in ("tpu", "gpu", "cpu"):
    on(platform)
    found = kernels.of_encoder(config, jnp.zeros(1), length)
    assert found == (expected if platform == "tpu" else None)


def test_padding_comes_last_and_goes_back():
  mask = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 1]])
  x = np.array([[[3], [4], [7], [8], [5]], [[8], [7], [3], [4], [5]]], np.float32)
  order, back = kernels.padding_last(mask)
  np.testing.assert_array_equal(kernels.reorder(mask, order), [[1, 1, 1, 0, 0]] * 2)
  np.testing.assert_array_equal(
    kernels.reorder(x, order)[..., 0], [[3, 4, 5, 7, 8], [3, 4, 5, 8, 7]]
  )
  np.testing.assert_array_equal(kernels.reorder(kernels.reorder(x, order), back), x)
