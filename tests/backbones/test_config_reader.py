"""Which keys of a config.json are read, passed over or refused, family by family (no weights)."""

import fnmatch
import importlib
import inspect
import json
import pathlib
import re

import pytest
import transformers

from frozen_jax.backbones import families
from frozen_jax.core.errors import UserError

STORED = json.loads((pathlib.Path(__file__).parent / "known_configs.json").read_text())
KNOWN = {name: entry["config"] for name, entry in STORED["models"].items()}
FAMILIES = sorted({config["model_type"] for config in KNOWN.values()})
ENCODERS = ("bert", "roberta", "electra", "t5", "mt5", "modernbert")


def read(config):
  family = families.family_of(config["model_type"], "hf", "config.json")
  return families.read_config(family, "hf", config, "config.json")


def test_every_family_is_known_by_real_files():
  assert {family.hf_name for family in families.FAMILIES} == set(FAMILIES)
  for kind in FAMILIES:
    assert sum(config["model_type"] == kind for config in KNOWN.values()) >= 5, kind


@pytest.mark.parametrize("name", KNOWN)
def test_a_real_file_at_its_real_sizes(name):
  config = KNOWN[name]
  heads = next(config[k] for k in ("num_attention_heads", "n_head", "num_heads") if config.get(k))
  layers = next(config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config)
  ours = read(config)
  assert (ours.heads, ours.layers, ours.vocab_size) == (heads, layers, config["vocab_size"])


# Switched-off keys of sibling families, and keys of training, generation, heads and tools.
SILENT = {
  **{"use_mrope": False, "alibi": False, "qk_layernorm": False, "attention_bias": False},
  **{"num_nextn_predict_layers": 0, "attn_logit_softcapping": None, "clip_qkv": None},
  **{"residual_multiplier": 1.0, "logits_scaling": 1, "moe_layers": [], "rope_scaling": None},
  **{"n_special": 0, "predict_special_tokens": True, "pooler_fc_size": 768, "output_past": True},
  **{"directionality": "bidi", "min_length": 0, "num_beams": 4, "repetition_penalty": 1.1},
  **{"bad_words_ids": [[5]], "hidden_dropout_prob": 0.1, "initializer_factor": 1.0, "seed": 42},
  **{"unsloth_version": "2025.1", "axolotl_version": "0.4", "use_flash_attn": True, "fp16": True},
  **{"mask_token_id": 4, "tokenizer_model_max_length": 512, "matryoshka_dimensions": [64, 128]},
  **{"id2label": {"0": "no"}, "problem_type": "regression", "classifier_pooling": "mean"},
  **{"custom_pipelines": {"text-generation": {}}, "xla_device": True, "model_parallel": False},
  **{"num_steps": "global_step320000", "author": "x", "created_date": "2021-04-28"},
  **{"trust_remote_code": True, "mergekit": "x", "num_params": 10**9, "model_size": "1B"},
  **{"multiple_of": 256, "ffn_dim_multiplier": 1.3, "max_batch_size": 4, "norm_type": "rmsnorm"},
  **{"dual_chunk_attention_config": {"chunk_size": 262144}, "vocab_size_padded": 300},
}
# Keys of windows and of rotary positions that only some families read.
OF_SOME = {
  "sliding_window": ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text", "modernbert"),
  "layer_types": ("mistral", "gemma2", "gemma3_text", "modernbert", "smollm3"),
  "use_sliding_window": ("qwen2", "qwen3", "qwen3_moe", "smollm3"),
  "partial_rotary_factor": ("phi3",),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_says_nothing_about_the_forward_pass_loads(kind):
  config = next(config for config in KNOWN.values() if config["model_type"] == kind)
  new = {key: value for key, value in SILENT.items() if key not in config}
  if kind in ("gpt_neox", "llama", "qwen3", "qwen3_moe", "smollm3", "modernbert"):
    new.pop("attention_bias", None)  # these have the switch themselves
  if kind in ENCODERS:  # the multipliers are those of decoders
    new = {k: v for k, v in new.items() if k not in ("residual_multiplier", "logits_scaling")}
  assert read(config | new) == read(config)


@pytest.mark.parametrize("key", OF_SOME)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_key_that_only_other_families_read_changes_nothing(kind, key):
  if kind in OF_SOME[key]:
    pytest.skip("the family reads it")
  config = next(config for config in KNOWN.values() if config["model_type"] == kind)
  layers = next(config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config)
  odd = {
    "sliding_window": 8,
    "layer_types": ["full_attention"] * layers,
    "use_sliding_window": True,
    "partial_rotary_factor": 0.5,
  }
  assert read(config | {key: odd[key]}) == read({k: v for k, v in config.items() if k != key})


# Of the keys that transformers knows, those that do not affect the states of a frozen model.
OF_HOW_IT_RUNS = ("use_cache", "return_dict", "summary_*")
HARMLESS = (
  *("*_token_id", "*_token_index", "architectures", "transformers_version", *OF_HOW_IT_RUNS),
  *("dtype", "pretraining_tp", "output_*", "deterministic_flash_attn"),
  *("initializer_*", "init_std", "*_dropout", "*_dropout_prob", "*pdrop", "dropout*", "layerdrop"),
  *("router_jitter_noise", "router_aux_loss_coef", "num_labels", "problem_type", "id2label"),
  *("label2id", "classifier_*", "decoder_bias", "sparse_pred*", "is_gated_act"),
  *("scale_decoder_outputs", "num_decoder_layers", "is_encoder_decoder", "tie_word_embeddings"),
  *("_attn_implementation", "get_text_config", "text_config", "vision_config", "mm_tokens_*"),
  *("_name_or_path", "_sliding_window_pattern", "ignore_keys_at_rope_validation"),
)


def keys_of_transformers(kind):
  """The keys that its config class has or its modeling code reads."""
  config = type(transformers.AutoConfig.for_model(kind))
  module = importlib.import_module(config.__module__.replace("configuration", "modeling"))
  source = inspect.getsource(module)
  read_there = re.findall(r"config\.([a-z_]\w*)", source)
  read_there += re.findall(r'getattr\([\w.]*config, "(\w+)"', source)
  older = re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', inspect.getsource(config))
  return {*config().to_dict(), *config.attribute_map, *read_there, *older}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_key_that_transformers_reads_is_read_or_harmless(kind):
  """An unread key loads, so none may be of those that change what transformers computes."""
  config = next(config for config in KNOWN.values() if config["model_type"] == kind)
  if kind.startswith("qwen"):
    config = config | {"use_sliding_window": True, "sliding_window": 8}
  ours, ignored = read(config), []
  for key in keys_of_transformers(kind):
    try:
      if read(config | {key: ["odd"]}) == ours:
        ignored.append(key)
    except UserError:
      pass
  harmless = (
    *HARMLESS,
    *(["sliding_window"] if kind == "smollm3" else []),
  )  # its switch is refused
  assert not [key for key in ignored if not any(fnmatch.fnmatch(key, one) for one in harmless)]


@pytest.mark.parametrize(
  "kind, alias, name, agrees",
  [
    ("gpt2", "num_hidden_layers", "n_layer", True),
    ("gptj", "hidden_size", "n_embd", True),
    ("bloom", "n_embed", "hidden_size", True),
    ("mixtral", "num_experts", "num_local_experts", True),
    ("t5", "num_attention_heads", "num_heads", True),
    ("gpt2", "max_position_embeddings", "n_positions", False),
    ("mt5", "hidden_size", "d_model", False),
  ],
)
def test_another_name_of_a_key(kind, alias, name, agrees):
  values = [config for config in KNOWN.values() if config["model_type"] == kind]
  config = next(config for config in values if config.get(name)) | {alias: None}
  assert read({key: v for key, v in config.items() if key != name} | {alias: config[name]}) == read(
    config
  )
  if not agrees:
    with pytest.raises(UserError, match=alias):
      read(config | {alias: config[name] * 2})


@pytest.mark.parametrize(
  "name, changes",
  [
    ("microsoft/Phi-3-mini-4k-instruct", {"attention_bias": True}),
    ("microsoft/Phi-3-mini-4k-instruct", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("meta-llama/Llama-2-7b-hf", {"compression_config": {"quant_method": "x"}}),
    ("meta-llama/Llama-2-7b-hf", {"rope_parameters": {"mrope_section": [16, 24, 24]}}),
    ("EleutherAI/pythia-1b", {"head_dim": 7}),
    ("answerdotai/ModernBERT-base", {"sliding_window": 8}),
    ("answerdotai/ModernBERT-base", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("HuggingFaceTB/SmolLM3-3B", {"use_sliding_window": True}),
    ("microsoft/Phi-4-mini-instruct", {"lm_head_bias": True}),
    ("microsoft/Phi-4-mini-instruct", {"full_attn_mod": 2}),
    ("Qwen/Qwen2.5-0.5B", {"use_mrope": True}),
    ("Qwen/Qwen2.5-0.5B", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
    ("Qwen/Qwen3-30B-A3B", {"shared_expert_intermediate_size": 512}),
    ("Qwen/Qwen3-30B-A3B", {"mlp_only_layers": [0]}),
    ("mistralai/Mistral-7B-v0.1", {"attention_bias": True}),
    ("meta-llama/Llama-2-7b-hf", {"residual_multiplier": 0.22}),
    ("meta-llama/Llama-2-7b-hf", {"attn_logit_softcapping": 50.0}),
    ("meta-llama/Llama-2-7b-hf", {"alibi": True}),
    ("meta-llama/Llama-2-7b-hf", {"quantization_config": {"bits": 4}}),
    ("meta-llama/Llama-2-7b-hf", {"rope_interleaved": True}),
    ("google/gemma-3-270m", {"use_bidirectional_attention": True}),
    ("google/gemma-2b", {"final_logit_softcapping": 30.0}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("EleutherAI/gpt-j-6b", {"rotary": False}),
    ("facebook/opt-6.7b", {"do_layer_norm_before": False}),
    ("facebook/opt-6.7b", {"word_embed_proj_dim": 512}),
    ("bigscience/bloom-560m", {"apply_residual_connection_post_layernorm": True}),
    ("bert-base-uncased", {"position_embedding_type": "relative_key"}),
    ("bert-base-uncased", {"feed_forward_type": "geglu"}),
    ("roberta-base", {"is_decoder": True}),
    ("EleutherAI/gpt-j-6b", {"eight_bit": True}),  # weights of another form
    ("t5-small", {"feed_forward_proj": "gated-mish"}),
    ("google/mt5-small", {"dense_act_fn": "mish"}),
    ("answerdotai/ModernBERT-base", {"hidden_activation": "mish"}),
  ],
  ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_changes_the_forward_pass_and_is_not_understood_is_named(name, changes):
  with pytest.raises(UserError, match=next(iter(changes))) as error:
    read(KNOWN[name] | changes)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "proj, changes, activation, gated",
  [
    ("gated-gelu", {}, "gelu_new", True),
    ("relu", {}, "relu", False),
    ("gated-gelu", {"dense_act_fn": "gelu"}, "gelu", True),
    (
      "relu",
      {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True},
      "gelu_pytorch_tanh",
      True,
    ),
    ("gated-silu", {"is_gated_act": False}, "silu", False),
  ],
)
def test_of_t5_the_activation_by_its_own_keys_counts(proj, changes, activation, gated):
  config = {**KNOWN["google/mt5-base"], "feed_forward_proj": proj}
  config = {k: v for k, v in config.items() if k not in ("dense_act_fn", "is_gated_act")}
  ours = read(config | changes)
  assert (ours.activation, ours.gated) == (activation, gated)
  theirs = transformers.MT5Config(**config | changes)
  assert (theirs.dense_act_fn, theirs.is_gated_act) == (activation, gated)


def defaults(kind):
  """All keys that transformers' config of this kind has, with their defaults."""
  config = transformers.AutoConfig.for_model(kind).to_dict()
  return config | ({"embedding_size": config["hidden_size"]} if kind == "electra" else {})


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_keys_of_transformers_with_their_defaults_load(kind):
  config = defaults(kind)
  width = next(config[key] for key in ("hidden_size", "n_embd", "d_model") if key in config)
  assert read(config).width == width


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_key_that_a_file_leaves_out_has_the_default_of_transformers(kind):
  """Or the file is refused; sizes that do not go together are refused too."""
  usual = transformers.AutoConfig.for_model(kind).to_dict()
  config = next(config for config in KNOWN.values() if config["model_type"] == kind)

  def read_or_none(values):
    try:
      return read(values)
    except UserError:
      return None

  follow_sizes = {"model_type", "layer_types", "word_embed_proj_dim"}
  for key in config.keys() & usual.keys() - follow_sizes:
    ours = read_or_none({name: value for name, value in config.items() if name != key})
    assert ours in (None, read_or_none(config | {key: usual[key]})), key


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_on_by_default_is_not_switched_off_in_silence(kind):
  usual = defaults(kind)
  ours = read(usual)
  silent = []
  for key in [key for key, value in usual.items() if value is True]:
    if any(fnmatch.fnmatch(key, pattern) for pattern in OF_HOW_IT_RUNS):
      continue
    try:
      same = read(usual | {key: False}) == ours
    except UserError:
      same = False
    if same:
      silent.append(key)
  of_other_parts = {"is_encoder_decoder", "tie_word_embeddings"}  # of an encoder's decoder or head
  of_other_parts |= {"scale_decoder_outputs", "decoder_bias", "is_gated_act"}
  assert set(silent) <= (of_other_parts if kind in ENCODERS else set())
