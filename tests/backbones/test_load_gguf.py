"""GGUF files: round trip of tiny random models, and every way to be wrong."""

import struct

import gguf
import numpy as np
import pytest

from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 11))


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers(llama, gguf_file, torch_logits, our_logits, tied):
  model = llama(tied=tied)
  loaded = load_decoder(str(gguf_file(model)), progress=False)
  assert loaded.config.tied == tied and loaded.tokenizer is None
  assert (loaded.config.vocab_size, loaded.config.head_dim) == (96, 32)
  np.testing.assert_allclose(our_logits(loaded, TOKENS), torch_logits(model, TOKENS), atol=2e-5)


def test_a_gguf_file_and_a_folder_give_the_same_tree(llama, gguf_file, folder):
  model = llama()
  one = load_decoder(str(gguf_file(model)), progress=False)
  other = load_decoder(str(folder(model)), progress=False)
  for name in ("q", "k", "v", "o"):
    kernels = [d.params["layers"]["attn"][name]["kernel"] for d in (one, other)]
    np.testing.assert_array_equal(*kernels)
  assert one.fingerprint != other.fingerprint  # it names the weights as they are stored


BLOCK = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
BLOCK |= {"head_dim": 64, "num_key_value_heads": 4}  # K and IQ types have rows of whole 256s
WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "BF16", "F16")
READ = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
READ += ("IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "NVFP4")


def random_blocks(kind, rows, columns, draw):
  """Blocks that hold finite numbers, for types that the gguf package cannot quantise."""
  size, stored = gguf.GGML_QUANT_SIZES[kind]
  blocks = draw.integers(0, 256, (rows * columns // size, stored), np.uint8)
  with np.errstate(all="ignore"):
    while (odd := ~np.isfinite(gguf.quants.dequantize(blocks, kind)).all(axis=1)).any():
      blocks[odd] = draw.integers(0, 256, (odd.sum(), stored), np.uint8)
  return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", [*WRITTEN, *READ])
def test_every_type_gives_the_numbers_of_the_gguf_package(llama, gguf_file, kind):
  type_ = gguf.GGMLQuantizationType[kind]
  model = llama(**BLOCK)
  draw = np.random.default_rng(0)
  tensors = gguf_file.tensors(model)
  for name, array in tensors.items():
    if array.ndim == 2:
      drawn = kind in READ
      rows = (
        random_blocks(type_, *array.shape, draw) if drawn else gguf.quants.quantize(array, type_)
      )
      tensors[name] = (rows, type_)
  loaded = load_decoder(str(gguf_file(model, tensors=tensors)), progress=False)
  layer = loaded.params["layers"]
  for name, ours in (
    ("token_embd.weight", loaded.params["embed"]["tokens"]),
    ("blk.0.ffn_down.weight", layer["mlp"]["down"]["kernel"][0].T),
    ("blk.0.attn_v.weight", layer["attn"]["v"]["kernel"][0].T),
  ):
    theirs = gguf.quants.dequantize(*tensors[name])
    assert np.isfinite(theirs).all() and theirs.std() > 0
    np.testing.assert_array_equal(ours, theirs)
  stored = gguf.quants.dequantize(*tensors["blk.0.attn_q.weight"])  # pairs of a head, not halves
  halves = stored.reshape(4, 32, 2, 256).swapaxes(1, 2).reshape(256, 256)
  np.testing.assert_array_equal(layer["attn"]["q"]["kernel"][0].T, halves)


def test_no_type_of_the_gguf_package_is_untested():
  known = {kind.name for kind in gguf.quants._type_traits}
  assert known | {"F16"} == {*WRITTEN, *READ}


@pytest.mark.parametrize(
  "kind,fault",
  [
    ("I8", r"not floating point numbers.*: blk.0.ffn_up.weight \(stored as I8\)"),
    ("F64", "blk.0.ffn_up.weight is stored as F64.*another quantisation"),
  ],
)
def test_a_type_that_cannot_be_dequantised(llama, gguf_file, kind, fault):
  model = llama()
  tensors = gguf_file.tensors(model)
  name, dtype = "blk.0.ffn_up.weight", {"I8": np.int8, "F64": np.float64}[kind]
  tensors[name] = (np.ones(tensors[name].shape, dtype), gguf.GGMLQuantizationType[kind])
  with pytest.raises(UserError, match=rf"{name} .*stored as {kind}"):
    load_decoder(str(gguf_file(model, tensors=tensors)), progress=False)


def test_a_type_that_the_gguf_package_does_not_know(llama, gguf_file):
  path = gguf_file(llama())
  data = path.read_bytes()
  name = b"blk.0.ffn_up.weight"
  place = data.index(name) + len(name) + 4 + 2 * 8  # the number and sizes of its dimensions
  path.write_bytes(data[:place] + struct.pack("<I", 97) + data[place + 4 :])
  with pytest.raises(UserError, match="type that the gguf package does not know.*97"):
    load_decoder(str(path), progress=False)


def test_a_mesh_gives_the_same_weights(llama, gguf_file):
  import jax

  path = str(gguf_file(llama()))
  whole = load_decoder(path, progress=False)
  spread = load_decoder(path, mesh=make_mesh(fsdp=2, tensor=4), progress=False)
  jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)


@pytest.mark.parametrize("kept", [0, 3, 40, 600, 0.5, 0.9, 0.9999])
def test_a_truncated_file(llama, gguf_file, kept):
  path = gguf_file(llama())
  data = path.read_bytes()
  path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
  with pytest.raises(UserError, match="not a whole GGUF file"):
    load_decoder(str(path), progress=False)


def test_something_else_in_a_gguf_file(tmp_path):
  path = tmp_path / "model.gguf"
  path.write_bytes(b"<html>not found</html>" * 100)
  with pytest.raises(UserError, match="not a whole GGUF file"):
    load_decoder(str(path), progress=False)


def test_wrong_tensors_are_listed_in_one_error(llama, gguf_file):
  model = llama()
  tensors = gguf_file.tensors(model)
  del tensors["blk.2.attn_k.weight"]
  tensors["blk.0.attn_scale.weight"] = np.ones(16, np.float32)
  tensors["blk.0.ffn_norm.weight"] = np.ones(63, np.float32)
  with pytest.raises(UserError) as error:
    load_decoder(str(gguf_file(model, tensors=tensors)), progress=False)
  said = str(error.value)
  assert "1 missing: blk.2.attn_k.weight" in said
  assert "1 not known: blk.0.attn_scale.weight" in said
  assert "blk.0.ffn_norm.weight [63] instead of [64]" in said


@pytest.mark.parametrize(
  "change, named",
  [
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope.scaling.factor"),
    (lambda w: w.add_rope_scaling_factor(4.0), "rope.scaling.factor = 4.0"),
    (lambda w: w.add_rope_scaling_yarn_beta_fast(4.0), "rope.scaling.yarn_beta_fast = 4.0"),
    (lambda w: w.add_expert_count(8), "0 of 8 experts"),
    (lambda w: w.add_logit_scale(0.5), "logit_scale = 0.5"),
    (lambda w: w.add_sliding_window(128), "attention.sliding_window = 128"),
    (lambda w: w.add_rope_dimension_count(16), "rope.dimension_count = 16"),
    (lambda w: w.add_uint16("split.count", 2), "llama-gguf-split"),
    (lambda w: w.add_vocab_size(95), "token_embd.weight [96, 64] instead of [95, 64]"),
  ],
)
def test_metadata_that_is_not_understood_is_named(llama, gguf_file, change, named):
  path = gguf_file(llama(), change=change)
  with pytest.raises(UserError) as error:
    load_decoder(str(path), progress=False)
  assert named in str(error.value)


def test_another_architecture(tmp_path):
  path = tmp_path / "other.gguf"
  writer = gguf.GGUFWriter(path, "mamba")
  writer.add_tensor("x", np.ones(4, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(UserError, match="'mamba'.*llama"):
    load_decoder(str(path), progress=False)
