"""Shared by several families: keys that are ignored, names of layers, fused tensors, windows."""

from typing import Any

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families.config_reader import ConfigReader

# What the names of a layer's tensors start with.
HF_LAYER, GGUF_LAYER = "model.layers.{layer}", "blk.{layer}"

# Keys of a config.json that switch on what no family here computes. The modeling code of
# transformers for these families does not read them; that of sibling families, or code that comes
# with a checkpoint, does.
_SWITCHES = (
  *("alibi", "use_alibi", "rope_interleaved", "use_mrope", "mrope_*", "llama_4_*", "alpha"),
  *("attention_bias", "qkv_bias", "lm_head_bias", "attention_chunk_size", "attention_multiplier"),
  *("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"),
  *("qk_layernorm", "qk_norm", "use_qk_norm", "shared_expert_*", "feed_forward_type", "eight_bit"),
)
_MULTIPLIERS = (
  *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"),
  *("interpolate_factor", "full_attn_mod"),
)


def read_hf_common(reader: ConfigReader, decoder: bool = True) -> None:
  """Reads the keys that any config.json may have.

  A key that is in no list here and that the family does not read is one that transformers does not
  read either: it cannot change the forward pass.
  """
  reader.refuse_only(*_SWITCHES)
  reader.expect(
    is_decoder=(False, True) if decoder else False,  # a causal model is causal either way
    add_cross_attention=False,
    quantization_config=(),
    compression_config=(),
    pruned_heads=({},),
    chunk_size_feed_forward=0,
    tie_encoder_decoder=False,
  )
  if decoder:
    reader.expect(
      is_encoder_decoder=False,
      use_bidirectional_attention=False,
      **dict.fromkeys(_MULTIPLIERS, (1, None, False)),
    )


def kinds(reader: ConfigReader) -> tuple[str, ...]:
  """The kinds of attention by `layer_types`; () where all of them, or none, are stated as full."""
  kind_of = {"full_attention": "full", "sliding_attention": "sliding"}
  stated = reader.sequence("layer_types", default=())
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
