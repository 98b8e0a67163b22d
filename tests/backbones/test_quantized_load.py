"""Loading a model quantised: the same as quantising it afterwards, on one device and on eight."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import quantized
from frozen_jax.backbones.load import load_decoder
from frozen_jax.backbones.quantized import QUANTIZATION_KINDS, Quantized, dequantize, summed_axis
from frozen_jax.core import paths
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.dequantizing import dequantized

pytestmark = pytest.mark.program

TOKENS = [[1, 5, 9, 2, 60, 31, 7, 11]]


def quantised_here(loaded, kind):
  """The leaves of a model in full precision, each quantised in one piece."""
  leaves = paths.flatten(loaded.params)
  for path, leaf in leaves.items():
    if (axis := summed_axis(path)) is not None:
      leaves[path] = quantized.quantize(leaf, kind, axis, "float32")
  return leaves


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder(llama, folder, our_logits, kind, tied):
  path = folder(llama(tied=tied, vocab_size=96 if tied else 97))  # also an odd number of codes
  full, loaded = (load_decoder(path, quantize=k, progress=False) for k in (None, kind))
  assert_same(paths.flatten(loaded.params), quantised_here(full, kind))
  assert loaded.fingerprint == full.fingerprint
  kernels = [p for p, leaf in paths.flatten(loaded.params).items() if isinstance(leaf, Quantized)]
  assert len(kernels) == 8 + (not tied)

  plain = type(loaded)(**vars(loaded) | {"params": dequantized(loaded.params)})
  np.testing.assert_allclose(our_logits(loaded, TOKENS), our_logits(plain, TOKENS), atol=1e-3)


def test_int8_is_near_the_model_in_full(llama, folder, torch_logits, our_logits):
  model = llama()
  loaded = load_decoder(folder(model), quantize="int8", progress=False)
  ours, theirs = our_logits(loaded, TOKENS), torch_logits(model, TOKENS)
  assert np.linalg.norm(ours - theirs) < 0.06 * np.linalg.norm(theirs)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("kind", QUANTIZATION_KINDS)
def test_eight_devices_equal_one(llama, folder, our_logits, kind):
  path = folder(llama())
  grid = make_mesh(data=2, fsdp=2, tensor=2)
  one, eight = (load_decoder(path, mesh=m, quantize=kind, progress=False) for m in (None, grid))
  assert checksum(one.params) == checksum(eight.params)
  codes = eight.params["layers"]["mlp"]["up"]["kernel"].numbers.qvalue
  assert codes.addressable_shards[0].data.size == codes.size // 4
  np.testing.assert_allclose(our_logits(one, TOKENS), our_logits(eight, TOKENS), atol=1e-3)


@pytest.mark.parametrize("mesh", [None, {"fsdp": 2, "tensor": 2}], ids=["one", "four"])
@pytest.mark.parametrize("kind,stored", [("int8", "Q8_0"), ("int4", "Q4_0"), ("int4", "Q4_1")])
def test_gguf_blocks_are_used_unchanged(llama, gguf_file, kind, stored, mesh):
  path = gguf_file(llama(), kind=gguf.GGMLQuantizationType[stored])
  full = load_decoder(path, progress=False)  # as the gguf package dequantises
  loaded = load_decoder(path, quantize=kind, mesh=mesh and make_mesh(**mesh), progress=False)
  leaves = paths.flatten(loaded.params)
  codes = {leaf.numbers.qvalue.dtype for leaf in leaves.values() if isinstance(leaf, Quantized)}
  assert codes == {jnp.dtype({"Q8_0": jnp.int8, "Q4_0": jnp.int4, "Q4_1": jnp.uint4}[stored])}
  assert_same({p: dequantize(leaf) for p, leaf in leaves.items()}, paths.flatten(full.params))
  assert loaded.fingerprint == full.fingerprint


@pytest.mark.parametrize("kind,stored", [("nf4", "Q4_0"), ("int8", "Q4_1"), ("int4", "Q8_0")])
def test_other_gguf_blocks_are_quantised_anew(llama, gguf_file, kind, stored):
  path = gguf_file(llama(), kind=gguf.GGMLQuantizationType[stored])
  full, loaded = (load_decoder(path, quantize=k, progress=False) for k in (None, kind))
  assert_same(paths.flatten(loaded.params), quantised_here(full, kind))


def test_a_stack_of_blocks_and_others_is_quantised_anew(llama, gguf_file, monkeypatch):
  """A leaf is one kind of array: llama.cpp's mixed files store some layers finer than others."""
  from frozen_jax.backbones.gguf_file import GGUFFile

  path = gguf_file(llama(), kind=gguf.GGMLQuantizationType.Q8_0)
  opened = GGUFFile.__init__

  def mixed(self, *arguments):
    opened(self, *arguments)
    self.dtypes["blk.1.ffn_up.weight"] = "Q6_K"

  monkeypatch.setattr(GGUFFile, "__init__", mixed)
  leaves = paths.flatten(load_decoder(path, quantize="int8", progress=False).params)
  groups = {p: leaf.numbers.scale.shape[-2] for p, leaf in leaves.items() if "kernel" in p}
  assert groups["layers/mlp/up/kernel"] == 1 and groups["layers/mlp/gate/kernel"] == 2
