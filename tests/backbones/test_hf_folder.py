"""Which files and tensors of a model's folder are its weights: as transformers decides it."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from frozen_jax.backbones.hf_folder import HFFolder
from frozen_jax.backbones.load import load_decoder, plan_decoder
from frozen_jax.backbones.load_encoder import load_encoder, plan_encoder
from frozen_jax.core.errors import UserError
from tests.backbones.decoder_cases import torch_model
from tests.backbones.encoder_cases import KINDS, make, randomise

pytestmark = pytest.mark.program

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 7))

# The models of transformers whose table is also a head, the kind whose settings they have.
TIED_ENCODERS = {
  "BertForMaskedLM": ("bert", "cls.predictions.decoder.weight"),
  "RobertaForMaskedLM": ("roberta", "lm_head.decoder.weight"),
  "ElectraForMaskedLM": ("electra", "generator_lm_head.weight"),
  "ModernBertForMaskedLM": ("modernbert", "decoder.weight"),
  "T5ForConditionalGeneration": ("t5", "lm_head.weight"),
}
TABLES = {"gpt2": "transformer.wte.weight", "bloom": "transformer.word_embeddings.weight"}
TABLES |= {"opt": "model.decoder.embed_tokens.weight"}
TABLES |= {"gpt_neox-in-line": "gpt_neox.embed_in.weight"}


def edit(folder, change):
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def planned(path, encoder=False):
  """The folder, whose tensors are checked to be those of its model; no weight is read."""
  stored = HFFolder(path)
  plan_encoder(path, stored) if encoder else plan_decoder(stored)
  return stored


def assert_same_weights(stored, other):
  assert sorted(stored.shapes) == sorted(other.shapes)
  for name in stored.shapes:
    np.testing.assert_array_equal(stored.raw_bytes(name), other.raw_bytes(name), name)


@pytest.mark.parametrize("how", ["saved again as one file", "copied over", "stale index", "cut"])
def test_one_file_counts_before_an_index_and_its_shards(llama, folder, torch_logits, how):
  new = llama(seed=2)
  whole = folder(new, "whole")
  path = folder(llama(seed=1), max_shard_size="40KB")
  shards = sorted(path.glob("model-*.safetensors"))
  assert len(shards) > 2
  if how == "saved again as one file":
    new.save_pretrained(path)
  else:
    shutil.copy(whole / "model.safetensors", path)
  if how == "stale index":
    shards[0].unlink()
  if how == "cut":
    shards[0].write_bytes(b"of an earlier save")
  assert (path / "model.safetensors.index.json").is_file()
  assert_same_weights(planned(path), planned(whole))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  np.testing.assert_array_equal(torch_logits(theirs, TOKENS), torch_logits(new, TOKENS))


def test_an_index_counts_before_files_that_it_does_not_list(llama, folder):
  path = folder(llama(seed=1), max_shard_size="40KB")
  expected = planned(path)
  other = folder(llama(seed=2), "other")
  for name in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
    shutil.copy(other / "model.safetensors", path / name)
  assert_same_weights(planned(path), expected)


def test_a_folder_with_its_weights_under_another_name(llama, folder):
  path = folder(llama())
  expected = planned(path)
  (path / "model.safetensors").rename(path / "model.fp16.safetensors")
  assert_same_weights(planned(path), expected)


@pytest.mark.parametrize("case", ["gpt2", "bloom", "opt", "qwen2", "gemma2", "gpt_neox-in-line"])
def test_a_tied_decoder_with_its_head_alone(case, folder):
  model = torch_model(case)
  path = folder(model)
  expected = planned(path)
  table = TABLES.get(case, "model.embed_tokens.weight")
  head = "embed_out.weight" if "neox" in case else "lm_head.weight"
  edit(path, lambda tensors: tensors.update({head: tensors.pop(table)}))
  assert_same_weights(planned(path), expected)


def test_logits_and_fingerprint_of_a_tied_model_with_its_head_alone(
  llama, folder, torch_logits, our_logits
):
  model = llama(tied=True)
  path = folder(model)
  fingerprint = load_decoder(str(path), progress=False).fingerprint
  edit(path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
  loaded = load_decoder(str(path), progress=False)
  np.testing.assert_allclose(our_logits(loaded, TOKENS), torch_logits(model, TOKENS), atol=2e-5)
  assert loaded.fingerprint == fingerprint
  theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  np.testing.assert_allclose(torch_logits(theirs, TOKENS), torch_logits(model, TOKENS), atol=1e-6)


def test_an_untied_model_with_its_head_alone_lacks_its_table(llama, folder):
  path = folder(llama())
  edit(path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
  with pytest.raises(UserError, match="1 missing: model.embed_tokens.weight"):
    planned(path)


@pytest.mark.parametrize("full", TIED_ENCODERS)
def test_a_tied_encoder_with_its_head_alone(full, folder):
  kind, head = TIED_ENCODERS[full]
  _, config, settings = KINDS[kind]
  more = {"decoder_start_token_id": 0} if "T5" in full else {}
  path = folder(
    randomise(getattr(transformers, full), getattr(transformers, config), settings | more)
  )
  expected = load_encoder(str(path), progress=False)
  table = next(key.hf.name for key in HFFolder(path).family.keys if key.path == "embed/tokens")
  edit(path, lambda tensors: tensors.update({head: tensors.pop(table)}))
  loaded = load_encoder(str(path), progress=False)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
  assert loaded.fingerprint == expected.fingerprint


def test_a_t5_with_its_table_under_its_decoder(folder):
  path = folder(make("t5"))
  expected = planned(path, encoder=True)
  edit(path, lambda t: t.update({"decoder.embed_tokens.weight": t.pop("shared.weight")}))
  assert_same_weights(planned(path, encoder=True), expected)


# Buffers that published checkpoints of a family hold, without the model's prefix.
BUFFERS = {
  "llama": ("model.", ["layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"]),
  "mistral": ("model.", ["layers.2.self_attn.rotary_emb.inv_freq"]),
  "qwen2": ("model.", ["layers.0.self_attn.rotary_emb.cos_cached", "rotary_emb.sin_cached"]),
  "phi3": ("model.", ["layers.1.self_attn.rotary_emb.inv_freq", "rotary_emb.original_inv_freq"]),
  "gemma2": ("model.", ["layers.0.self_attn.rotary_emb.inv_freq"]),
  "gemma3": ("model.", ["rotary_emb_local.inv_freq", "embed_tokens.embed_scale"]),
  "smollm3": ("model.", ["rotary_emb.inv_freq"]),
  "gpt2": ("transformer.", ["h.0.attn.bias", "h.2.attn.masked_bias"]),
  "gptj": ("transformer.", ["h.0.attn.bias", "h.1.attn.masked_bias", "h.0.attn.embed_positions"]),
  "gpt_neox": ("gpt_neox.", [f"layers.0.attention.{n}" for n in ("bias", "masked_bias")]),
  "gpt_neox-in-line": ("gpt_neox.", ["layers.1.attention.rotary_emb.inv_freq"]),
  "opt": ("model.", ["decoder.version", "decoder.embed_positions._float_tensor"]),
  "bloom": ("transformer.", ["h.0.self_attention.masked_bias"]),
  "bert": ("bert.", ["embeddings.position_ids", "embeddings.token_type_ids"]),
  "roberta": ("roberta.", ["embeddings.position_ids", "embeddings.token_type_ids"]),
  "electra": ("electra.", ["embeddings.position_ids", "embeddings.token_type_ids"]),
  "modernbert": ("model.", ["layers.0.attn.rotary_emb.inv_freq"]),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_constants_beside_the_weights_are_left_out(kind, folder):
  encoder = kind in KINDS
  path = folder(make(kind) if encoder else torch_model(kind))
  expected = planned(path, encoder)
  prefix, names = BUFFERS[kind]
  names = [f"{start}{name}" for name in names for start in ("", prefix, f"0.auto_model.{prefix}")]
  edit(path, lambda tensors: tensors.update({name: np.arange(4) for name in names}))
  assert_same_weights(planned(path, encoder), expected)
  edit(path, lambda tensors: tensors.update({"something.bias": np.zeros(4)}))
  with pytest.raises(UserError, match="1 not known: something.bias"):
    planned(path, encoder)
