"""Gemma 1, 2 and 3 (text).

RMS norms with 1 added to their scale, embeddings times the square root of the width, tanh GELU.
Gemma 2 and 3 also have norms after attention and MLP, and alternate local and global attention;
Gemma 2 soft-caps attention scores and logits; Gemma 3 has norms of queries and keys, and a rotary
base of its own for local layers.
"""

from typing import Any

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import gguf_config
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.llama import sizes
from frozen_jax.backbones.families.rope_config import read_rope, scaled
from frozen_jax.backbones.families.shared import GGUF_LAYER, HF_LAYER, kinds
from frozen_jax.backbones.families.table import (
  Family,
  TensorKey,
  embedding_keys,
  linear_keys,
  norm_keys,
)


def _fields(reader: ConfigReader, context: int, kv_heads: int) -> dict[str, Any]:
  head_dim = reader.integer("head_dim", default=256)
  fields = sizes(reader, context, tied=True, kv_heads=kv_heads)
  reader.expect(attention_bias=False)
  activation = reader.string(
    "hidden_activation", "hidden_act", default="gelu_pytorch_tanh", choices=decoder.ACTIVATIONS
  )
  return fields | {
    "head_dim": head_dim,
    "embed_scale": fields["width"] ** 0.5,
    "norm_offset": 1.0,
    "activation": activation,
  }


def gemma(reader: ConfigReader) -> DecoderConfig:
  fields = _fields(reader, context=8192, kv_heads=16)
  if fields["activation"] == "gelu":  # in old files; the weights were trained with the tanh form
    fields["activation"] = "gelu_pytorch_tanh"
  rope, fraction = read_rope(reader, fields["context"])
  return DecoderConfig(**fields, rope=rope, rotary_dim=int(fields["head_dim"] * fraction))


def _later(reader: ConfigReader, period: int, context: int) -> dict[str, Any]:
  """The fields that Gemma 2 and 3 share: every `period`-th layer has full attention."""
  fields = _fields(reader, context, kv_heads=4)
  layers = fields["layers"]
  alternate = tuple("full" if (i + 1) % period == 0 else "sliding" for i in range(layers))
  window = reader.integer("sliding_window", default=4096)
  stated = kinds(reader) if "layer_types" in reader else alternate
  return fields | {
    "norm_after": True,
    "window": window,
    "kinds": stated,
    "query_scale": reader.number("query_pre_attn_scalar", default=256.0) ** -0.5,
  }


def gemma2(reader: ConfigReader) -> DecoderConfig:
  fields = _later(reader, period=2, context=8192)
  rope, fraction = read_rope(reader, fields["context"])
  return DecoderConfig(
    **fields,
    rope=rope,
    rotary_dim=int(fields["head_dim"] * fraction),
    logit_cap=reader.number("final_logit_softcapping", default=30.0, nullable=True),
    score_cap=reader.number("attn_logit_softcapping", default=50.0, nullable=True),
  )


def gemma3(reader: ConfigReader) -> DecoderConfig:
  period = reader.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
  fields = _later(reader, period, context=131_072)
  near = reader.number("rope_local_base_freq", default=10_000.0)
  both = reader.nested("rope_parameters")
  if "full_attention" in both:
    far, local = both.nested("full_attention"), both.nested("sliding_attention")
    rope = scaled(far, far.number("rope_theta", default=1_000_000.0), fields["context"])
    near_rope = scaled(local, local.number("rope_theta", default=near), fields["context"])
  else:
    rope, _ = read_rope(reader, fields["context"], theta=1_000_000.0)
    near_rope = scaled(ConfigReader({}, reader.where), near, fields["context"])
  return DecoderConfig(
    **fields,
    rope=rope,
    local_rope=near_rope,
    qk_norm=True,
    logit_cap=reader.number("final_logit_softcapping", default=None),
    score_cap=reader.number("attn_logit_softcapping", default=None),
  )


def _products(kind: str, names: dict[str, tuple[str, str]]) -> tuple[TensorKey, ...]:
  folder = {"attn": "self_attn", "mlp": "mlp"}[kind]
  return tuple(
    key
    for ours, (hf, gguf) in names.items()
    for key in linear_keys(
      f"layers/{kind}/{ours}", f"{HF_LAYER}.{folder}.{hf}", f"{GGUF_LAYER}.{gguf}"
    )
  )


_PRODUCTS = (
  *embedding_keys("embed/tokens", "model.embed_tokens", "token_embd"),
  *norm_keys(
    "layers/attn_norm", f"{HF_LAYER}.input_layernorm", f"{GGUF_LAYER}.attn_norm", gguf_offset=-1.0
  ),
  *_products(
    "attn",
    {
      **{name: (f"{name}_proj", f"attn_{name}") for name in "qkv"},
      "o": ("o_proj", "attn_output"),
    },
  ),
  *_products("mlp", {n: (f"{n}_proj", f"ffn_{n}") for n in ("gate", "up", "down")}),
  *norm_keys("final_norm", "model.norm", "output_norm", gguf_offset=-1.0),
  *linear_keys("head", "lm_head", "output"),
)
_FIRST = (
  *_PRODUCTS,
  *norm_keys(
    "layers/mlp_norm", f"{HF_LAYER}.post_attention_layernorm", f"{GGUF_LAYER}.ffn_norm", -1.0
  ),
)
_LATER = (
  *_PRODUCTS,
  *norm_keys(
    "layers/attn/q_norm", f"{HF_LAYER}.self_attn.q_norm", f"{GGUF_LAYER}.attn_q_norm", -1.0
  ),
  *norm_keys(
    "layers/attn/k_norm", f"{HF_LAYER}.self_attn.k_norm", f"{GGUF_LAYER}.attn_k_norm", -1.0
  ),
  *norm_keys(
    "layers/attn_after",
    f"{HF_LAYER}.post_attention_layernorm",
    f"{GGUF_LAYER}.post_attention_norm",
    -1.0,
  ),
  *norm_keys(
    "layers/mlp_norm", f"{HF_LAYER}.pre_feedforward_layernorm", f"{GGUF_LAYER}.ffn_norm", -1.0
  ),
  *norm_keys(
    "layers/mlp_after",
    f"{HF_LAYER}.post_feedforward_layernorm",
    f"{GGUF_LAYER}.post_ffw_norm",
    -1.0,
  ),
)


def _family(
  name: str, gguf: str, keys: tuple[TensorKey, ...], read_hf: Any, read_gguf: Any
) -> Family:
  derived = gguf_config.ROPE_TENSORS
  return Family(name, decoder, keys, read_hf, gguf, read_gguf, prefix="model.", derived=derived)


FAMILIES = (
  _family("gemma", "gemma", _FIRST, gemma, gguf_config.gemma),
  _family("gemma2", "gemma2", _LATER, gemma2, gguf_config.gemma2),
  _family("gemma3_text", "gemma3", _LATER, gemma3, gguf_config.gemma3),
)
