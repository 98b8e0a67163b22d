"""Model folders as transformers writes them: parity of the logits, and every way to be wrong."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from frozen_jax.backbones.load import load_decoder, outline_decoder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones import decoder_cases

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 11))


def edit_config(folder, **changes):
  path = folder / "config.json"
  settings = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in settings.items() if v != "drop"}))


def edit_weights(folder, change):
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", ["one", "many"])
def test_logits_equal_transformers(llama, folder, torch_logits, our_logits, tied, shards):
  model = llama(tied=tied)
  path = folder(model, max_shard_size="40KB" if shards == "many" else "5GB")
  assert (path / "model.safetensors.index.json").is_file() == (shards == "many")
  loaded = load_decoder(str(path), progress=False)
  assert loaded.config.tied == tied and loaded.tokenizer is None
  assert loaded.config.rope.theta == 5000.0 and loaded.config.head_dim == 32
  expected = torch_logits(model, TOKENS)
  assert np.ptp(expected) > 3  # weights that matter: a swapped tensor would show
  np.testing.assert_allclose(our_logits(loaded, TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize("case", ["llama", "gemma2"])  # the second has layers of two kinds
@pytest.mark.parametrize("count", [1, 2])
def test_the_first_layers_alone_are_the_shallower_model(
  folder, torch_logits, our_logits, case, count
):
  model = decoder_cases.torch_model(case)
  path = folder(model)
  whole, shallow = (load_decoder(str(path), num_layers=n, progress=False) for n in (None, count))
  assert shallow.config.layers == count < whole.config.layers
  assert shallow.fingerprint != whole.fingerprint
  assert load_decoder(str(path), num_layers=99, progress=False).fingerprint == whole.fingerprint
  outline = outline_decoder(str(path), num_layers=count)
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert outline.config == shallow.config and shapes(outline.params) == shapes(shallow.params)
  model.model.layers = model.model.layers[:count]
  model.config.num_hidden_layers = count
  expected = torch_logits(model, TOKENS)
  np.testing.assert_allclose(our_logits(shallow, TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_exactly(llama, folder, dtype):
  model = llama().to(dtype)
  loaded = load_decoder(str(folder(model)), progress=False)
  weight = model.model.layers[2].mlp.down_proj.weight.detach().float().numpy()
  np.testing.assert_array_equal(loaded.params["layers"]["mlp"]["down"]["kernel"][2], weight.T)
  short = load_decoder(str(folder(model)), dtype="bfloat16", progress=False)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(short.params)} == {"bfloat16"}


def test_a_mesh_gives_the_same_weights_on_their_shards(llama, folder):
  path = str(folder(llama(), max_shard_size="40KB"))
  whole = load_decoder(path, progress=False)
  spread = load_decoder(path, mesh=make_mesh(data=2, fsdp=2, tensor=2), progress=False)
  jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)
  gate = spread.params["layers"]["mlp"]["gate"]["kernel"]  # [L, D, F] over fsdp and tensor
  assert gate.addressable_shards[0].data.shape == (3, 32, 48)
  assert spread.fingerprint == whole.fingerprint


def test_a_mesh_reads_only_what_its_shards_need(llama, folder, monkeypatch):
  from frozen_jax.backbones import hf_folder

  read = []
  original = hf_folder.HFFolder.read

  def counted(self, name, index):
    part = original(self, name, index)
    read.append(part.nbytes)
    return part

  path = folder(llama())
  monkeypatch.setattr(hf_folder.HFFolder, "read", counted)
  load_decoder(str(path), mesh=make_mesh(data=2, fsdp=2, tensor=2), progress=False)
  stored = sum(a.nbytes for a in safetensors.numpy.load_file(path / "model.safetensors").values())
  assert sum(read) == stored  # no byte twice, though each shard lies on two devices or more


def test_older_spellings_of_the_config_are_read(llama, folder, torch_logits, our_logits):
  model = llama(num_key_value_heads=4, head_dim=16)
  path = folder(model)
  edit_config(path, rope_parameters="drop", rope_theta=5000.0, rope_scaling=None, head_dim="drop")
  edit_config(path, torch_dtype="float32", num_key_value_heads="drop", _name_or_path="x")
  loaded = load_decoder(str(path), progress=False)
  np.testing.assert_allclose(our_logits(loaded, TOKENS), torch_logits(model, TOKENS), atol=2e-5)


@pytest.mark.parametrize(
  "changes, named",
  [
    (
      {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},  # and rope_parameters: default
      "rope_scaling = {'rope_type': 'linear', 'factor': 8.0}",
    ),
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters.rope_type = 'spiral'"),
    ({"rope_parameters": {"rope_type": "default", "alpha": 2}}, "rope_parameters.alpha = 2"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.low_freq_factor"),
    ({"attention_bias": "yes"}, "attention_bias = 'yes', where true or false is needed"),
    ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"qk_norm": True, "alibi": True}, "alibi = True; qk_norm = True"),
    ({"hidden_size": "drop"}, "hidden_size"),
    ({"num_attention_heads": [4, 4, 4]}, "heads"),
    ({"num_key_value_heads": 3}, "cannot share"),
    ({"model_type": "mamba"}, "'mamba'"),
  ],
)
def test_a_setting_that_is_not_understood_is_named(llama, folder, changes, named):
  path = folder(llama())
  edit_config(path, **changes)
  with pytest.raises(UserError) as error:
    load_decoder(str(path), progress=False)
  assert named in str(error.value) and "config.json" in str(error.value)
  assert "\n" not in str(error.value)


def test_wrong_tensors_are_listed_in_one_error(llama, folder):
  path = folder(llama())

  def spoil(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(128, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]

  edit_weights(path, spoil)
  with pytest.raises(UserError) as error:
    load_decoder(str(path), progress=False)
  said = str(error.value)
  assert "2 missing" in said and "model.layers.1.mlp.up_proj.weight" in said
  assert "model.norm.weight" in said
  assert "1 not known: model.layers.0.self_attn.q_proj.bias" in said
  assert "lm_head.weight [95, 64] instead of [96, 64]" in said


def test_the_head_is_missing_where_the_model_is_not_tied(llama, folder):
  path = folder(llama(tied=True))
  edit_config(path, tie_word_embeddings=False)
  with pytest.raises(UserError, match="1 missing: lm_head.weight"):
    load_decoder(str(path), progress=False)


def test_a_tied_model_may_store_its_table_twice_but_not_differently(llama, folder):
  path = folder(llama(tied=True))
  edit_weights(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
  assert "head" not in load_decoder(str(path), progress=False).params
  edit_weights(path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
  with pytest.raises(UserError, match="tie_word_embeddings"):
    load_decoder(str(path), progress=False)


def test_a_lost_and_a_cut_shard(llama, folder):
  path = folder(llama(), max_shard_size="40KB")
  shard = sorted(path.glob("*.safetensors"))[1]
  data = shard.read_bytes()
  shard.write_bytes(data[:-100])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    load_decoder(str(path), progress=False)
  shard.unlink()
  with pytest.raises(UserError, match=f"lacks {shard.name}"):
    load_decoder(str(path), progress=False)


def test_integers_are_no_weights(llama, folder):
  path = folder(llama())
  name = "model.layers.0.mlp.up_proj.weight"
  edit_weights(path, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
  with pytest.raises(UserError, match="stored as I8"):
    load_decoder(str(path), progress=False)


def test_a_pickle_is_refused_with_advice(llama, folder):
  model = llama()
  path = folder(model)
  (path / "model.safetensors").unlink()
  torch.save(model.state_dict(), path / "pytorch_model.bin")
  with pytest.raises(UserError, match="pytorch_model.bin, a pickle.*save_pretrained"):
    load_decoder(str(path), progress=False)
  (path / "pytorch_model.bin").unlink()
  with pytest.raises(UserError, match="no .safetensors file"):
    load_decoder(str(path), progress=False)


def test_config_json_is_absent_or_broken(llama, folder):
  path = folder(llama())
  (path / "config.json").write_text('{"model_type": "llama",\n')
  with pytest.raises(UserError, match="cannot read .*config.json"):
    load_decoder(str(path), progress=False)
  (path / "config.json").unlink()
  with pytest.raises(UserError, match="has no config.json"):
    load_decoder(str(path), progress=False)


@pytest.mark.parametrize(
  "how, said",
  [
    ({"name": "smollm3"}, "built-in name .smollm2-135m-instruct"),
    ({"name": "hf:a/b/c"}, "hf:owner/name"),
    ({"name": "smollm2-135m-instruct", "dtype": "int8"}, "float32 or bfloat16"),
    ({"name": "smollm2-135m-instruct", "quantize": "int3"}, "choose int8, int4, nf4"),
    ({"name": __file__}, "no .gguf file"),
  ],
)
def test_a_name_or_option_that_is_none(how, said):
  with pytest.raises(UserError, match=said):
    load_decoder(**how)
