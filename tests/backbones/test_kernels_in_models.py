"""Models whose attention a kernel computes give what they give without; which programs have one."""

import dataclasses
import functools
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from frozen_jax.backbones import decoder, encoder, kernels, stack
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.kernels import Kernel
from frozen_jax.sharding.rules import replicated, shardings
from frozen_jax.tools.pod_plan.topology import topology_mesh

CONFIG = DecoderConfig(
  vocab_size=50,
  width=32,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=16,
  mlp_width=48,
  kinds=("sliding", "full", "sliding"),
  window=6,
)
CAPPED = dataclasses.replace(CONFIG, score_cap=3.0, qk_norm=True)
ENCODER = EncoderConfig(
  vocab_size=50,
  width=32,
  layers=3,
  heads=4,
  head_dim=16,
  mlp_width=48,
  norm_first=True,
  positions="rotary",
  local=(False, True, True),
  window=5,
)
ROWS, LENGTH = 3, 20


@pytest.fixture
def kernel(monkeypatch):
  """Makes all models use a kernel of this name, interpreted."""

  def use(name):
    def of_decoder(config, like, length):
      windows = tuple({"sliding": config.window}.get(kind) for kind in config.kinds[:2])
      return Kernel(name, windows, soft_cap=config.score_cap, interpret=True)

    monkeypatch.setattr(kernels, "of_decoder", of_decoder)
    local = Kernel(name, (None, ENCODER.window), is_causal=False, interpret=True)
    monkeypatch.setattr(kernels, "of_encoder", lambda *_: local)

  return use


def traced_anew(function, *arrays):
  return jax.jit(lambda *given: function(*given))(*arrays)


def prompted_texts(width, side):
  """Embedded texts after a prompt of four positions, which padding may part from them."""
  x = jax.random.normal(jax.random.key(3), (ROWS, LENGTH, width))
  lengths = np.array([16, 9, 3])[:, None]
  places = np.arange(LENGTH - 4)
  text = places < lengths if side == "right" else places >= LENGTH - 4 - lengths
  return x, np.concatenate([np.ones((ROWS, 4)), text], axis=1).astype(np.int32)


def prefixes(config):
  shape = (config.layers, 5, config.kv_heads, config.head_dim)
  keys = jax.random.split(jax.random.key(4))
  return {
    "prefix": {name: jax.random.normal(key, shape) for name, key in zip("kv", keys, strict=True)}
  }


@pytest.mark.parametrize(
  "name, config, side, before",
  [
    ("splash", CAPPED, "left", ""),
    ("splash", CONFIG, "right", "prefix"),
    ("splash", CAPPED, "left", "prompt"),
    ("cudnn", CONFIG, "left", "prefix"),
    ("cudnn", CONFIG, "right", ""),
    ("cudnn", CONFIG, "left", "prompt"),
  ],
)
def test_a_decoder_with_a_kernel_equals_one_without(name, config, side, before, kernel):
  params = decoder.random_params(config, jax.random.key(0))
  x, mask = prompted_texts(config.width, side)
  weights = jax.random.normal(jax.random.key(5), x.shape) * mask[..., None]

  def loss(x, peft, prompt):
    options = {"peft": peft, "prompt": prompt, "remat": "attention"}
    return (decoder.hidden(params, config, x, mask, **options) * weights).sum()

  peft = prefixes(config) if before == "prefix" else {}
  prompt = 0.3 * jnp.ones((7, config.width)) if before == "prompt" else None
  expected = traced_anew(jax.value_and_grad(loss, (0, 1, 2)), x, peft, prompt)
  kernel(name)
  found = traced_anew(jax.value_and_grad(loss, (0, 1, 2)), x, peft, prompt)
  for one, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_decoding_goes_on_after_a_kernel(name, kernel):
  """Prompts with padding before their text: the cache may have it elsewhere."""
  params = decoder.random_params(CONFIG, jax.random.key(0))
  x, mask = prompted_texts(CONFIG.width, "left")
  new = jax.random.normal(jax.random.key(6), (ROWS, 1, CONFIG.width))

  def run(x, peft):
    states, cache = decoder.prefill(params, CONFIG, x, mask, 2, peft=peft)
    later, cache = decoder.step(params, CONFIG, new, cache, peft=peft)
    return states[:, -1:], later, decoder.step(params, CONFIG, new, cache, peft=peft)[0]

  expected = traced_anew(run, x, prefixes(CONFIG))
  kernel(name)
  for one, other in zip(expected, traced_anew(run, x, prefixes(CONFIG)), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("places", [None, [[0, 12], [3, 9], [0, 18]]])
def test_an_encoder_with_a_kernel_equals_one_without(places, kernel):
  params = encoder.random_params(ENCODER, jax.random.key(0))
  x = jax.random.normal(jax.random.key(3), (ROWS, LENGTH, ENCODER.width))
  mask = np.zeros((ROWS, LENGTH), np.int32)  # two texts in the first row, padding in all
  mask[0, :12], mask[0, 12:18], mask[1, 3:], mask[2, :19] = 1, 2, 1, 1
  positions = None if places is None else np.array(places)
  real = mask if places is None else np.ones_like(positions)
  weights = jax.random.normal(jax.random.key(5), (*real.shape, ENCODER.width)) * real[..., None]

  def loss(x):
    states = encoder.hidden(params, ENCODER, x, mask, output_positions=positions)
    return (states * weights).sum()

  expected = traced_anew(jax.value_and_grad(loss), x)
  kernel("splash")
  for one, other in zip(expected, traced_anew(jax.value_and_grad(loss), x), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.fixture
def cuda_mesh(monkeypatch):
  """A mesh of GPUs that this machine does not have; JAX is not to look for them and their cuDNN."""
  monkeypatch.setattr(dispatch, "prim_requires_devices_during_lowering", set())
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(kernels, "has_cudnn_attention", lambda: True)
  device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
  axes = ("data", "fsdp", "tensor")
  return AbstractMesh((1, 2, 2), axes, (AxisType.Auto,) * 3, abstract_device=device)


def lowered(config, mesh, dtype=jnp.bfloat16, **options):
  """The loss and gradient of a decoder, for a mesh of devices that this machine does not have."""
  shapes = jax.eval_shape(
    functools.partial(decoder.random_params, config, dtype=dtype), jax.random.key(0)
  )
  places = shardings(shapes, decoder.PARAM_AXES, mesh)
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  x = jax.ShapeDtypeStruct((4, LENGTH, config.width), dtype, sharding=rows)
  mask = jax.ShapeDtypeStruct((4, LENGTH), jnp.int32, sharding=rows)

  peft = jax.tree.map(
    lambda a: place(a, replicated(mesh)), jax.eval_shape(lambda: prefixes(config))
  )

  def loss(x, peft, params, mask):
    states = decoder.hidden(params, config, x, mask, peft=peft, remat="none")
    return states.astype(jnp.float32).sum()

  params = jax.tree.map(place, shapes, places)
  return jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x, peft, params, mask).lower(**options)


@pytest.mark.parametrize(
  "changes, dtype, kinds",
  [
    ({"kinds": ()}, jnp.bfloat16, 1),
    ({}, jnp.bfloat16, 2),
    ({"kinds": ()}, jnp.float16, 1),
    ({"kinds": ()}, jnp.float32, 0),
    ({"score_cap": 3.0}, jnp.bfloat16, 0),
    ({"kinds": (), "positions": "alibi"}, jnp.bfloat16, 0),
    ({"kinds": (), "head_dim": 20}, jnp.bfloat16, 0),
  ],
)
def test_a_program_for_nvidia_calls_cudnn_where_it_can(changes, dtype, kinds, cuda_mesh):
  """Once forward and once backward for each kind of layer, on the rows and heads of a device.

  The texts have an odd length, prefix included, of which JAX refuses cuDNN's derivative.
  """
  config = dataclasses.replace(CONFIG, **changes)
  text = lowered(config, cuda_mesh, dtype, lowering_platforms=("cuda",)).as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == kinds
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == kinds
  if kinds:
    calls = [line for line in text.splitlines() if "@__cudnn$fmhaSoftmax(" in line]
    dtype = {"bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    assert all(f"tensor<2x{LENGTH + 6}x2x16x{dtype}>" in call for call in calls)
    windows = sorted("sliding_window_length\\22: 6" in call for call in calls)
    assert windows == [False, True][:kinds]


@pytest.mark.program
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed (extra `plan`)")
def test_the_compiler_for_tpus_takes_kernels_of_two_kinds():
  """Each kernel is there once for each kind: none is run again in the backward pass."""
  mesh = topology_mesh("v5e:2x2", {"data": 1, "fsdp": 2, "tensor": 2})
  text = lowered(dataclasses.replace(CAPPED, head_dim=128), mesh).compile().as_text()
  calls = [line for line in text.splitlines() if "custom-call(" in line]
  for kernel in ("fwd", "dq", "dkv"):
    assert sum(f"%splash_mha_{kernel}" in call.partition("=")[0] for call in calls) == 2


@pytest.mark.parametrize("trained", [False, True])
def test_inputs_that_are_kept_in_bfloat16_change_no_loss(trained, monkeypatch):
  """The loss is the same, the gradient nearly; the inputs of all layers are half as large."""
  config = dataclasses.replace(CONFIG, kinds=())
  params = decoder.random_params(config, jax.random.key(0), jnp.bfloat16)
  x, mask = prompted_texts(config.width, "right")
  a, b = (
    jax.random.normal(jax.random.key(n), (3, *shape)) * 0.1
    for n, shape in enumerate([(32, 4), (4, 64)])
  )
  peft = {"lora": {"attn": {"q": {"a": a, "b": b}}}} if trained else {}

  def run():
    @jax.jit  # within the differentiated function: what is closed over is gone when it is traced
    def states(x, peft):
      return decoder.hidden(params, config, x, mask, peft=peft, remat="full").astype(jnp.float32)

    loss = lambda x, peft: (jnp.square(states(x, peft)) * mask[..., None]).sum() / 100
    program = jax.jit(jax.value_and_grad(loss, (0, 1)))
    text = str(program.trace(x, peft).jaxpr)
    kept = [f"{dtype}[3,{ROWS},{LENGTH},32]" in text for dtype in ("f32", "bf16")]
    return kept, program(x, peft)

  monkeypatch.setattr(stack, "platform_of", lambda array: "tpu")
  kept, (value, gradients) = run()
  assert kept == [False, True]
  monkeypatch.setattr(stack, "platform_of", lambda array: "cpu")
  kept, (expected, expected_gradients) = run()
  assert kept == [True, False]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for one, other in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one / scale, other / scale, atol=2e-2)
