"""Shared by several families: keys that are ignored, layouts of fused tensors, sliding windows."""

from typing import Any

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families.config_reader import ConfigReader

# Keys of any config.json that do not affect the forward pass of a frozen model.
HF_IGNORED = (
  *("_*", "architectures", "attn_implementation", "auto_map", "dtype", "model_type"),
  *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
  *("decoder_start_token_id", "forced_*", "suppress_tokens", "begin_suppress_tokens"),
  *("initializer_range", "init_std", "torch_dtype", "transformers_version", "use_cache"),
  *("finetuning_task", "id2label", "label2id", "problem_type", "num_labels"),
  *("is_llama_config", "pretraining_tp", "tokenizer_class", "torchscript"),
  *("gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "prefix"),
  *("transformers.js_config", "use_bfloat16", "task_specific_params", "unsloth_*", "max_length"),
  *("temperature", "top_p", "top_k", "do_sample", "language", "classifier_dropout", "summary_*"),
  *("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "dropout"),
  *("layerdrop", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
  *("max_new_tokens", "cache_implementation", "hidden_act_param"),
)


def read_hf_common(reader: ConfigReader) -> None:
  """Reads the keys that any config.json may have."""
  reader.ignore(*HF_IGNORED)
  reader.expect(
    is_decoder=(False, True),  # a causal model of transformers is causal either way
    is_encoder_decoder=False,
    add_cross_attention=False,
    quantization_config=(),
    pruned_heads=({},),
    chunk_size_feed_forward=0,
    tie_encoder_decoder=False,
    use_bidirectional_attention=False,
  )


def kinds(reader: ConfigReader, layers: int, window: int | None) -> tuple[str, ...]:
  """The kinds of attention by `layer_types`; without it, all layers slide if there is a window."""
  kind_of = {"full_attention": "full", "sliding_attention": "sliding"}
  stated = reader.sequence("layer_types", default=())
  if not stated:
    return ("sliding",) * layers if window else ()
  unknown = [kind for kind in stated if kind not in kind_of]
  if unknown:
    reader.reject("layer_types")
    return ()
  attention_kinds = tuple(kind_of[kind] for kind in stated)
  return attention_kinds if "sliding" in attention_kinds else ()


def stacked_qkv(config: DecoderConfig) -> tuple[int, tuple[int, ...]]:
  """The layout: queries of all heads, then keys, then values."""
  queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
  return 1, (queries, keys, keys)


def headwise_qkv(config: DecoderConfig) -> tuple[int, tuple[int, ...]]:
  """The layout: for each head its query, key and value."""
  return config.heads, (config.head_dim,) * 3


def stacked_mlp(config: Any) -> tuple[int, tuple[int, ...]]:
  """The layout: the gate projection, then the up projection."""
  return 1, (config.mlp_width,) * 2
