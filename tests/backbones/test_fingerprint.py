"""The fingerprint names the stored weights and nothing else."""

import re

import numpy as np
import safetensors.numpy

from frozen_jax.backbones.load import load_decoder
from frozen_jax.sharding.mesh import make_mesh


def of(path, **how):
  return load_decoder(str(path), progress=False, **how).fingerprint


def test_it_does_not_depend_on_how_the_weights_are_loaded_or_split(llama, folder):
  model = llama()
  one = folder(model, "one")
  first = of(one)
  assert re.fullmatch(r"[0-9a-f]{64}", first)
  assert of(one, dtype="bfloat16") == first
  assert of(one, mesh=make_mesh(fsdp=2, tensor=2)) == first
  assert of(folder(model, "many", max_shard_size="40KB")) == first


def test_it_changes_with_one_bit_of_one_weight(llama, folder):
  path = folder(llama())
  first = of(path)
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  weight = tensors["model.layers.1.self_attn.v_proj.weight"]
  weight[3, 5] = np.nextafter(weight[3, 5], np.float32(9))
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  assert of(path) != first


def test_it_changes_when_two_tensors_change_places(llama, folder):
  path = folder(llama())
  first = of(path)
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
  tensors[a], tensors[b] = tensors[b], tensors[a]
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  assert of(path) != first


def test_gguf(llama, gguf_file):
  one, other = gguf_file(llama(), "one.gguf"), gguf_file(llama(seed=1), "other.gguf")
  assert of(one) == of(one, dtype="bfloat16") != of(other)


def test_the_real_model_keeps_its_name(smollm2):
  """Adapters refuse a base of another fingerprint: if this changes, every adapter is orphaned."""
  assert smollm2.fingerprint == FINGERPRINT


FINGERPRINT = "424aadedc1b2981cbfb87f49512fe0d2c9e27043ee9a96ac215b8387cda7b7a4"
