"""GGUF files: round trip of tiny random models, and every way to be wrong."""

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


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_tensors_are_read(llama, gguf_file, kind):
  model = llama()
  loaded = load_decoder(str(gguf_file(model, kind=gguf.GGMLQuantizationType[kind])), progress=False)
  for ours, theirs in (
    (loaded.params["layers"]["attn"]["q"]["kernel"][1], model.model.layers[1].self_attn.q_proj),
    (loaded.params["layers"]["mlp"]["up"]["kernel"][2], model.model.layers[2].mlp.up_proj),
  ):
    off = np.abs(np.asarray(ours).T - theirs.weight.detach().numpy())
    assert 0 < off.max() < (0.1 if kind == "Q4_1" else 0.01)


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
