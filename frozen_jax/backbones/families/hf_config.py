"""A decoder's config -> the config.json of transformers, for models that have none: GGUF files.

It is written for those that one set of keys describes, and then read back and compared.
"""

import contextlib
import dataclasses
from typing import Any

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import read_config
from frozen_jax.backbones.families.table import Family
from frozen_jax.core.errors import UserError

# Model type -> its class in transformers.
_CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma": "GemmaForCausalLM",
}


def hf_config(family: Family, config: DecoderConfig) -> dict[str, Any] | None:
  """The keys and values of config.json; None where these keys do not describe the model."""
  if family.hf_name not in _CLASSES:
    return None
  values = {
    "model_type": family.hf_name,
    "architectures": [_CLASSES[family.hf_name]],
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "max_position_embeddings": config.context,
    "rms_norm_eps": config.norm_eps,
    "hidden_act": config.activation,
    "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
    "tie_word_embeddings": config.tied,
    "attention_bias": config.out_bias,
    "mlp_bias": config.mlp_bias,
  }
  with contextlib.suppress(UserError):
    if _spelled_out(read_config(family, "hf", values, "config.json")) == _spelled_out(config):
      return values
  return None


def _spelled_out(config: DecoderConfig) -> DecoderConfig:
  """The same config with the width that is rotated as a number, whatever file said it how."""
  return dataclasses.replace(config, rotary_dim=config.rotated)
