"""Folders of encoders, of transformers and sentence-transformers, and every way to be wrong."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from frozen_jax.backbones import encoder
from frozen_jax.backbones.load import load_decoder
from frozen_jax.backbones.load_encoder import load_encoder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.encoder_cases import KINDS, core, make, randomise
from tests.backbones.test_load_folder import edit_config, edit_weights

pytestmark = pytest.mark.program

TOKENS = np.random.default_rng(0).integers(5, 60, (2, 9))

# Models of other tasks: whose kind's settings they have, and the attribute that is the encoder.
OF_OTHER_TASKS = {
  "BertForPreTraining": ("bert", "bert"),
  "BertForMaskedLM": ("bert", "bert"),
  "BertForSequenceClassification": ("bert", "bert"),
  "BertForQuestionAnswering": ("bert", "bert"),
  "RobertaForMaskedLM": ("roberta", "roberta"),
  "RobertaForSequenceClassification": ("roberta", "roberta"),
  "ElectraForPreTraining": ("electra", "electra"),
  "ElectraForMaskedLM": ("electra", "electra"),
  "ElectraForSequenceClassification": ("electra", "electra"),
  "T5ForConditionalGeneration": ("t5_gated", "encoder"),
  "MT5ForConditionalGeneration": ("mt5", "encoder"),
  "ModernBertForMaskedLM": ("modernbert", "model"),
  "ModernBertForSequenceClassification": ("modernbert", "model"),
}


def states(loaded):
  x = encoder.embed(loaded.params, loaded.config, TOKENS)
  return encoder.hidden(loaded.params, loaded.config, x)


def torch_states(model):
  with torch.no_grad():
    return core(model)(torch.tensor(TOKENS)).last_hidden_state.numpy()


@pytest.mark.parametrize("full", OF_OTHER_TASKS)
def test_the_encoder_of_a_model_of_another_task(folder, full):
  kind, part = OF_OTHER_TASKS[full]
  _, config, settings = KINDS[kind]
  more = {"decoder_start_token_id": 0} if "T5" in full else {}
  model = randomise(getattr(transformers, full), getattr(transformers, config), settings | more)
  inner = getattr(model, part)
  loaded = load_encoder(str(folder(model)), progress=False)
  np.testing.assert_allclose(states(loaded), torch_states(inner), atol=2e-5)
  assert loaded.tokenizer is None


@pytest.mark.parametrize("kind", ["t5_gated", "t5", "mt5"])
def test_only_the_encoder_of_a_whole_t5_counts_and_is_read(folder, kind, monkeypatch):
  from frozen_jax.backbones import hf_folder

  alone = make(kind)
  model = randomise(
    transformers.T5ForConditionalGeneration, transformers.T5Config, KINDS[kind][2], seed=1
  )
  if kind == "mt5":
    model = randomise(
      transformers.MT5ForConditionalGeneration, transformers.MT5Config, KINDS[kind][2], seed=1
    )
  model.encoder.load_state_dict(alone.encoder.state_dict())
  model.shared.load_state_dict(alone.shared.state_dict())
  read = []
  for method in ("read", "raw_bytes"):
    original = getattr(hf_folder.HFFolder, method)

    def noted(self, name, *index, original=original):
      read.append(name)
      return original(self, name, *index)

    monkeypatch.setattr(hf_folder.HFFolder, method, noted)
  full = load_encoder(str(folder(model, "whole")), progress=False)
  assert read and not [name for name in read if name.startswith("decoder")]
  part = load_encoder(str(folder(alone, "alone")), progress=False)
  jax.tree.map(np.testing.assert_array_equal, full.params, part.params)
  assert full.fingerprint == part.fingerprint and full.config == part.config


def test_names_of_older_files(folder):
  """LayerNorm.gamma and beta, buffers of positions, T5's table under its encoder's name."""
  bert, t5 = make("bert"), make("t5")
  path, other = folder(bert), folder(t5, "t5")

  def older(tensors):
    for name in [name for name in tensors if "LayerNorm" in name]:
      other = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
      tensors[other] = tensors.pop(name)
    tensors["embeddings.position_ids"] = np.arange(32)[None]

  expected = load_encoder(str(path), progress=False)
  edit_weights(path, older)
  loaded = load_encoder(str(path), progress=False)
  np.testing.assert_allclose(states(loaded), torch_states(bert), atol=2e-5)
  assert loaded.fingerprint == expected.fingerprint

  def under_encoder(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

  edit_weights(other, under_encoder)
  loaded = load_encoder(str(other), progress=False)
  np.testing.assert_allclose(states(loaded), torch_states(t5), atol=2e-5)


def test_modernbert_with_older_settings(folder):
  model = make("modernbert", global_attn_every_n_layers=2)
  path = folder(model)
  expected = load_encoder(str(path), progress=False)
  assert expected.config.local == (False, True, False, True)
  edit_config(
    path,
    layer_types="drop",
    rope_parameters="drop",
    global_attn_every_n_layers=2,
    global_rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    position_embedding_type="absolute",
    layer_norm_eps=1e-5,
  )
  loaded = load_encoder(str(path), progress=False)
  assert loaded.config == expected.config
  np.testing.assert_allclose(states(loaded), torch_states(model), atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "t5", "modernbert"])
def test_a_missing_and_an_unknown_tensor_are_named_together(folder, kind):
  path = folder(make(kind))
  lost = sorted(safetensors.numpy.load_file(path / "model.safetensors"))[0]

  def change(tensors):
    tensors["adapter.weight"] = tensors.pop(lost)

  edit_weights(path, change)
  with pytest.raises(UserError, match=f"(?s)missing: .*{lost}.*not known: adapter.weight"):
    load_encoder(str(path), progress=False)


@pytest.mark.parametrize(
  "kind, setting, value",
  [
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("bert", "add_cross_attention", True),
    ("bert", "hidden_act", "mish"),
    ("bert", "feed_forward_type", "geglu"),
    ("roberta", "position_embedding_type", "relative_key_query"),
    ("electra", "quantization_config", {"bits": 4}),
    ("t5", "dense_act_fn", "mish"),
    ("t5_gated", "dense_act_fn", "mish"),
    ("modernbert", "layer_types", ["full_attention"] * 3 + ["chunked_attention"]),
    ("modernbert", "hidden_activation", "mish"),
  ],
)
def test_a_setting_that_is_not_understood_is_an_error(folder, kind, setting, value):
  path = folder(make(kind))
  edit_config(path, **{setting: value})
  with pytest.raises(UserError, match=setting) as error:
    load_encoder(str(path), progress=False)
  assert "\n" not in str(error.value)


def test_a_rotation_that_is_not_understood_is_an_error(folder):
  path = folder(make("modernbert"))
  edit_config(path, rope_parameters={"full_attention": {"rope_type": "spiral"}})
  with pytest.raises(UserError, match="spiral"):
    load_encoder(str(path), progress=False)


def test_heads_that_do_not_divide_the_width(folder):
  path = folder(make("bert"))
  edit_config(path, num_attention_heads=5)
  with pytest.raises(UserError, match="num_attention_heads = 5"):
    load_encoder(str(path), progress=False)


def test_encoders_and_decoders_are_not_taken_for_each_other(folder, llama, tmp_path):
  path, other = folder(make("bert"), "bert"), folder(llama(), "llama")
  with pytest.raises(UserError, match="is an encoder.*load_encoder"):
    load_decoder(str(path), progress=False)
  with pytest.raises(UserError, match="is a decoder.*load_frozen"):
    load_encoder(str(other), progress=False)
  (tmp_path / "model.gguf").write_bytes(b"GGUF")
  with pytest.raises(UserError, match="read from folders"):
    load_encoder(str(tmp_path / "model.gguf"), progress=False)


@pytest.mark.parametrize("kind", ["bert", "t5_gated", "modernbert", "electra"])
def test_a_mesh_gives_the_same_weights_on_their_shards(folder, kind):
  path = str(folder(make(kind), max_shard_size="10KB"))
  full = load_encoder(path, progress=False)
  sharded = load_encoder(path, mesh=make_mesh(data=2, fsdp=2, tensor=2), progress=False)
  jax.tree.map(np.testing.assert_array_equal, sharded.params, full.params)
  down = sharded.params["layers"]["mlp"]["down"]["kernel"]  # [L, F, D] over tensor and fsdp
  assert down.addressable_shards[0].data.shape == (full.config.layers, 20, 12)
  assert sharded.fingerprint == full.fingerprint


def test_loading_brings_in_no_torch(folder):
  path = folder(make("bert"))
  program = (
    "import sys; import frozen_jax; e = frozen_jax.load_encoder(sys.argv[1]); "
    "print(e.hidden([[5, 6, 7]]).shape); assert 'torch' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=os.environ
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "(1, 3, 24)"


# What the config.json of well-known models says otherwise than transformers writes it today.
PUBLISHED = {
  "t5-small": (
    "t5",
    {
      "decoder_start_token_id": 0,
      "dense_act_fn": "drop",
      "is_encoder_decoder": True,
      "is_gated_act": "drop",
      "n_positions": 512,
      "output_past": True,
      "task_specific_params": {"summarization": {"num_beams": 4}},
    },
  ),
  "flan-t5-small": (
    "t5_gated",
    {
      "dense_act_fn": "gelu_new",
      "is_gated_act": True,
      "n_positions": 512,
      "output_past": True,
      "tie_word_embeddings": False,
    },
  ),
  "mt5-small": ("mt5", {"tokenizer_class": "T5Tokenizer", "dense_act_fn": "drop"}),
  "ModernBERT-base": (
    "modernbert",
    {
      "classifier_pooling": "mean",
      "global_attn_every_n_layers": 3,
      "global_rope_theta": 160_000.0,
      "layer_norm_eps": 1e-5,
      "layer_types": "drop",
      "local_rope_theta": 10_000.0,
      "position_embedding_type": "absolute",
      "reference_compile": None,
      "repad_logits_with_grad": False,
      "rope_parameters": "drop",
    },
  ),
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_what_published_configs_say_is_understood(folder, published):
  kind, settings = PUBLISHED[published]
  path = folder(make(kind))
  expected = load_encoder(str(path), progress=False).config
  edit_config(path, **settings)
  assert load_encoder(str(path), progress=False).config == expected
