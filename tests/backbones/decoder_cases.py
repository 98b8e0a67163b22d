"""Tiny random models of every decoder family, in configurations that are odd on purpose."""

import torch
import transformers

SIZES = {
  "vocab_size": 99,
  "hidden_size": 48,
  "intermediate_size": 72,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
HEADED = SIZES | {"head_dim": 16}  # six heads of 16 are wider than the model
OPEN_AI = {"vocab_size": 99, "n_embd": 48, "n_layer": 3, "n_head": 6, "bos_token_id": 1}
OPEN_AI |= {"eos_token_id": 2}
OPT = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")}
OPT |= {"ffn_dim": 80, "word_embed_proj_dim": 48}
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
LONG = {"rope_theta": 1e4, "rope_type": "longrope", "original_max_position_embeddings": 8}
LONG |= {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 2.0, 4.0, 8.0]}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}


def rope(kind, **more):
  return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}

CASES = {
  "llama": ("Llama", HEADED),
  "llama-biases-tied": (
    "Llama",
    HEADED
    | {"attention_bias": True, "mlp_bias": True}
    | rope("default")
    | {"tie_word_embeddings": True},
  ),
  "llama-linear": ("Llama", SIZES | rope("linear", factor=3.0)),
  "llama-dynamic": ("Llama", SIZES | {"max_position_embeddings": 8} | rope("dynamic", factor=2.0)),
  "llama-llama3": ("Llama", SIZES | rope("llama3", **LLAMA3)),
  "llama-yarn": ("Llama", SIZES | rope("yarn", **YARN)),
  "llama-yarn-untruncated": (
    "Llama",
    SIZES
    | rope(
      "yarn", **YARN, truncate=False, beta_fast=20.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4
    ),
  ),
  "llama-longrope-short": (
    "Llama",
    SIZES | {"rope_parameters": LONG | {"original_max_position_embeddings": 32}},
  ),
  "mistral": ("Mistral", HEADED | {"sliding_window": 4}),
  "mistral-full": ("Mistral", SIZES | {"sliding_window": None, "num_key_value_heads": 3}),
  "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True}),
  "qwen2-sliding": (
    "Qwen2",
    SIZES | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
  ),
  "qwen3": ("Qwen3", HEADED),
  "qwen3-biases": ("Qwen3", HEADED | {"attention_bias": True, "num_key_value_heads": 6}),
  "gemma": ("Gemma", HEADED),
  "gemma-one-key-head": (
    "Gemma",
    HEADED | {"num_key_value_heads": 1, "hidden_act": "gelu", "tie_word_embeddings": False},
  ),
  "gemma2": (
    "Gemma2",
    HEADED
    | {
      "sliding_window": 4,
      "query_pre_attn_scalar": 24,
      "final_logit_softcapping": 3.0,
      "attn_logit_softcapping": 2.0,
    },
  ),
  "gemma2-uncapped": (
    "Gemma2",
    HEADED
    | {"sliding_window": 40, "final_logit_softcapping": None, "attn_logit_softcapping": None},
  ),
  "gemma3": (
    "Gemma3Text",
    HEADED
    | {
      "sliding_window": 4,
      "query_pre_attn_scalar": 20,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
  ),
  "gemma3-linear": (
    "Gemma3Text",
    HEADED
    | {
      "sliding_window": 5,
      "num_hidden_layers": 7,
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
      },
    },
  ),
  "phi3": ("Phi3", SIZES),
  "phi3-partial-sliding": (
    "Phi3",
    SIZES | {"sliding_window": 4} | rope("default", partial_rotary_factor=0.5),
  ),
  "phi3-longrope": (
    "Phi3",
    SIZES | {"original_max_position_embeddings": 8, "rope_parameters": LONG},
  ),
  "smollm3": ("SmolLM3", SIZES | {"num_hidden_layers": 5}),
  "smollm3-no-positions-at-all": (
    "SmolLM3",
    SIZES | {"no_rope_layers": [0, 0, 0], "attention_bias": True},
  ),
  "mixtral": ("Mixtral", SIZES | EXPERTS),
  "mixtral-sliding": (
    "Mixtral",
    HEADED | EXPERTS | {"sliding_window": 4, "num_experts_per_tok": 1},
  ),
  "qwen3_moe": ("Qwen3Moe", HEADED | EXPERTS | {"moe_intermediate_size": 20}),
  "qwen3_moe-renormalised": (
    "Qwen3Moe",
    HEADED
    | EXPERTS
    | {"moe_intermediate_size": 20, "norm_topk_prob": True, "tie_word_embeddings": True},
  ),
  "gpt2": ("GPT2", OPEN_AI | {"n_positions": 32}),
  "gpt2-untied": (
    "GPT2",
    OPEN_AI
    | {
      "n_positions": 32,
      "n_inner": 56,
      "tie_word_embeddings": False,
      "activation_function": "gelu",
    },
  ),
  "gpt_neox": ("GPTNeoX", NEOX),
  "gpt_neox-in-line": (
    "GPTNeoX",
    NEOX
    | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
    | rope("default", partial_rotary_factor=1.0),
  ),
  "gptj": ("GPTJ", OPEN_AI | {"rotary_dim": 4}),
  "gptj-whole": ("GPTJ", OPEN_AI | {"rotary_dim": 8, "n_inner": 56}),
  "opt": ("OPT", OPT),
  "opt-bare": (
    "OPT",
    OPT | {"enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False},
  ),
  "bloom": ("Bloom", {"vocab_size": 99, "hidden_size": 48, "n_layer": 3, "n_head": 6}),
  "bloom-eight-heads": ("Bloom", {"vocab_size": 99, "hidden_size": 48, "n_layer": 2, "n_head": 8}),
}
NAMES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}  # the rest: XForCausalLM


def torch_model(case, **changes):
  """The model of transformers, float32, with random weights that matter."""
  kind, settings = CASES[case]
  torch.manual_seed(0)
  config = getattr(transformers, f"{kind}Config")(**settings | changes)
  config._attn_implementation = "eager"
  model = getattr(transformers, NAMES.get(kind, f"{kind}ForCausalLM"))(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      centre = 1.0 if name.endswith("weight") and weight.ndim == 1 else 0.0
      centre -= "gemma" in config.model_type and centre  # Gemma adds 1 to its scales itself
      weight.normal_(centre, 0.15)
  return model
