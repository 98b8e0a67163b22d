"""The config.json files of well-known models: all of their keys are accepted, and mean the same.

`known_configs.json` has the files. Each is shrunk (widths, layers, vocabulary; all other keys stay)
and loaded with random weights: the outputs equal those of transformers with the same file. What
does change the forward pass and is not understood stays an error.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers

from frozen_jax.backbones import decoder, encoder, families
from frozen_jax.backbones.load import load_decoder
from frozen_jax.backbones.load_encoder import load_encoder

pytestmark = pytest.mark.program

STORED = json.loads((pathlib.Path(__file__).parent / "known_configs.json").read_text())
KNOWN = {name: entry["config"] for name, entry in STORED["models"].items()}

VOCABULARY, LAYERS, HEADS, WIDTH, HEAD_DIM = 60, 2, 4, 32, 8
SMALL = {
  "vocab_size": VOCABULARY,
  **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim"), WIDTH),
  **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), LAYERS),
  **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), HEADS),
  **dict.fromkeys(("head_dim", "d_kv"), HEAD_DIM),
  **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner"), 40),
  "num_decoder_layers": 1,
  "rotary_dim": 4,
  "moe_intermediate_size": 24,
  "num_experts": 5,
  "num_local_experts": 5,
  "num_experts_per_tok": 2,
}
ONE_EACH_LAYER = ("layer_types", "no_rope_layers")
TOKENS = np.random.default_rng(0).integers(4, VOCABULARY, (2, 9))


def shrunk(config):
  """The config at tiny sizes; ratios of heads, and ids and lists that follow from sizes, fit."""
  small = dict(config) | {k: v for k, v in SMALL.items() if config.get(k) is not None}
  if "num_key_value_heads" in config:
    shared = config["num_attention_heads"] // config["num_key_value_heads"]
    small["num_key_value_heads"] = max(HEADS // shared, 1)
  if "embedding_size" in config:
    same = config["embedding_size"] == config["hidden_size"]
    small["embedding_size"] = WIDTH if same else 16
  for key in ONE_EACH_LAYER:
    if key in config:
      small[key] = config[key][-LAYERS:]
  usual = transformers.AutoConfig.for_model(config["model_type"])
  if (config.get("pad_token_id", usual.pad_token_id) or 0) >= VOCABULARY:  # of a table's row
    small["pad_token_id"] = 3
  scaling = config.get("rope_scaling") or {}
  if "long_factor" in scaling:
    pairs = int(HEAD_DIM * config.get("partial_rotary_factor", 1.0)) // 2
    cut = {f"{kind}_factor": scaling[f"{kind}_factor"][::9][:pairs] for kind in ("short", "long")}
    small["rope_scaling"] = scaling | cut
  return small


def reference(config, folder):
  """The model of transformers by the file in `folder`, with random weights, which it writes."""
  (folder / "config.json").write_text(json.dumps(config))
  float32 = {"dtype": "float32", "attn_implementation": "eager"}  # not that of the file
  read = transformers.AutoConfig.from_pretrained(folder, **float32)
  kind = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}.get(config["model_type"])
  is_decoder = families.family_of(config["model_type"], "hf", "").network is decoder
  torch.manual_seed(0)
  if kind:
    model = getattr(transformers, kind)(read)
  else:
    auto = transformers.AutoModelForCausalLM if is_decoder else transformers.AutoModel
    model = auto.from_config(read)
  model.eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      centre = 1.0 if name.endswith("weight") and weight.ndim == 1 else 0.0
      centre -= "gemma" in config["model_type"] and centre  # Gemma adds 1 itself
      weight.normal_(centre, 0.2)
  model.save_pretrained(folder)
  (folder / "config.json").write_text(json.dumps(config))
  return model


@jax.jit(static_argnums=1)
def logits(params, config, tokens):
  hidden = decoder.hidden(params, config, decoder.embed(params, config, tokens))
  return decoder.logits(params, config, hidden)


@jax.jit(static_argnums=1)
def states(params, config, tokens):
  return encoder.hidden(params, config, encoder.embed(params, config, tokens))


FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 0}
CHANGED = [
  ("meta-llama/Llama-2-7b-hf", {"partial_rotary_factor": 0.5}),
  (
    "meta-llama/Llama-2-7b-hf",
    {"rope_parameters": {"rope_theta": 99.0, "partial_rotary_factor": 0.5}},
  ),
  ("mistralai/Mistral-7B-v0.1", {"partial_rotary_factor": 0.5}),
  ("Qwen/Qwen2.5-0.5B", {"partial_rotary_factor": 0.5}),
  ("google/gemma-2-2b", {"partial_rotary_factor": 0.5}),
  ("microsoft/Phi-3-mini-4k-instruct", {"partial_rotary_factor": 0.5}),
  ("EleutherAI/pythia-1b", {"rope_theta": 99.0, "partial_rotary_factor": 1.0, "rotary_pct": 0.5}),
  ("meta-llama/Llama-2-7b-hf", WINDOW | {"layer_types": [FULL, SLIDING]}),
  ("google/gemma-2b", WINDOW),
  *(
    ("Qwen/Qwen2.5-0.5B", WINDOW | {"layer_types": types})
    for types in ([FULL, FULL], [SLIDING, FULL], [SLIDING, SLIDING])
  ),
  ("Qwen/Qwen2.5-0.5B", WINDOW | {"max_window_layers": 1}),
  ("Qwen/Qwen2.5-0.5B", {"dual_chunk_attention_config": {"chunk_size": 4}}),
  ("Qwen/Qwen3-0.6B", WINDOW | {"layer_types": [FULL, FULL]}),
  ("Qwen/Qwen3-30B-A3B", WINDOW | {"layer_types": [FULL, FULL], "max_window_layers": 1}),
  *(
    (name, {"sliding_window": 3, "layer_types": [FULL, SLIDING], "head_dim": HEAD_DIM})
    for name in ("mistralai/Mistral-7B-v0.1", "mistralai/Mixtral-8x7B-v0.1")
  ),
  ("microsoft/Phi-3-mini-4k-instruct", {"sliding_window": 3, "layer_types": [FULL, FULL]}),
]


@pytest.mark.parametrize("name, changes", CHANGED, ids=lambda value: str(value)[:60])
def test_what_a_changed_key_means_is_what_it_means_in_transformers(name, changes, tmp_path):
  assert_outputs_equal(shrunk(KNOWN[name]) | changes, tmp_path)


@pytest.mark.parametrize("name", KNOWN)
def test_the_outputs_equal_transformers(name, tmp_path):
  assert_outputs_equal(shrunk(KNOWN[name]), tmp_path)


def assert_outputs_equal(config, tmp_path):
  model = reference(config, tmp_path)
  with torch.no_grad():
    outputs = model(torch.from_numpy(TOKENS))
  if hasattr(outputs, "logits"):
    loaded = load_decoder(str(tmp_path), progress=False)
    ours, theirs = logits(loaded.params, loaded.config, TOKENS), outputs.logits
  else:
    loaded = load_encoder(str(tmp_path), progress=False)
    ours, theirs = states(loaded.params, loaded.config, TOKENS), outputs.last_hidden_state
  assert np.ptp(theirs.numpy()) > 0.5  # weights that matter
  np.testing.assert_allclose(ours, theirs.numpy(), atol=5e-5, rtol=1e-5)
