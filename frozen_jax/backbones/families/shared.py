"""Shared by several families: keys that are ignored, names of layers, fused tensors, windows."""

from typing import Any

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families.config_reader import ConfigReader

# What the names of a layer's tensors start with.
HF_LAYER, GGUF_LAYER = "model.layers.{layer}", "blk.{layer}"

# Keys of any config.json that do not affect the forward pass of a frozen model.
HF_IGNORED = (
  # What the file is and what wrote it.
  *(
    "_*",
    "architectures",
    "auto_map",
    "model_type",
    "model_name",
    "name",
    "base_model*",
    "license",
  ),
  *("*_version", "version", "revision", "transformers.js_config", "unsloth_*", "custom_pipeline*"),
  *("is_llama_config", "is_quantized", "language", "languages", "tags", "task", "library_name"),
  *("sentence_transformers", "onnx*", "openvino*", "neuron", "adapters", "peft_*", "lora_config"),
  # How it is run: dtypes, kernels, devices, outputs beside the states.
  *("dtype", "torch_dtype", "*_dtype", "attn_implementation", "use_flash*", "flash_attn*"),
  *("*flash_attention*", "deterministic_flash_attn", "use_fused*", "fused_*", "*_fusion"),
  *("xla_device", "use_bfloat16", "bf16", "fp16", "model_parallel", "torchscript", "use_cache"),
  *("cache_implementation", "pretraining_tp", "pretraining_pp", "sequence_parallel*", "*_in_fp32"),
  *("output_past", "output_attentions", "output_hidden_states", "output_router_logits"),
  *("return_dict", "keys_to_ignore_at_inference", "tf_legacy_loss", "is_training"),
  # The tokenizer.
  *("*_token_id", "*_token_ids", "*_token", "*_token_index", "*_tokens", "prefix"),
  *("tokenizer_*", "model_max_length", "max_sequence_length", "max_seq_length", "seq_length"),
  *("do_lower_case", "directionality", "padding_side", "truncation_side", "chat_template"),
  # Training: dropout, initial weights, losses.
  *(
    "dropout",
    "*_dropout",
    "*_dropout_prob",
    "*_dropout_p",
    "*_pdrop",
    "dropout_rate",
    "layerdrop",
  ),
  *("drop_path_rate", "initializer_*", "init_std", "init_*", "gradient_checkpointing*"),
  *("use_gradient_checkpointing", "*_loss", "*_loss_coef", "*_loss_weight", "loss_*", "z_loss*"),
  *("router_jitter_noise", "jitter_noise", "label_smoothing*", "ignore_index", "neftune_*"),
  *("learning_rate", "seed", "optimizer", "scheduler", "training_*", "train_*", "deepspeed*"),
  # Heads and tasks that are not read.
  *("finetuning_task", "id2label", "label2id", "problem_type", "num_labels", "num_choices"),
  *("task_specific_params", "classifier_*", "summary_*", "pooler_*", "sbert_ce_*", "qa_*"),
  *("n_special", "predict_special_tokens", "matryoshka_dim*"),
  # Generation, which has a file of its own now.
  *("max_length", "min_length", "max_new_tokens", "min_new_tokens", "do_sample", "temperature"),
  *(
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "num_beams",
    "num_beam_groups",
  ),
  *(
    "num_return_sequences",
    "*_penalty",
    "penalty_alpha",
    "*no_repeat_ngram_size",
    "early_stopping",
  ),
  *("bad_words_ids", "forced_*", "remove_invalid_values", "output_scores", "output_logits"),
  *("return_dict_in_generate", "renormalize_logits", "stop_strings", "guidance_scale"),
  *("sequence_bias", "watermarking_config"),
)


_NEUTRAL_AT_ONE = (
  *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"),
  *("interpolate_factor", "full_attn_mod"),
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
    # Of sibling families: what multiplies by one, and the layers of a window that is off.
    **dict.fromkeys(_NEUTRAL_AT_ONE, (1, None, False)),
  )
  if reader.switches_off("use_sliding_window"):
    reader.ignore("sliding_window", "max_window_layers")


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
