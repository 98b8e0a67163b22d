"""Llama-like models: Llama, Mistral, Mixtral, Qwen 2 and 3, Qwen3-MoE, SmolLM3, Phi-3.

RMS norms before attention and MLP, rotary positions, grouped queries, gated MLPs. They differ in:
sliding windows (Mistral), QKV biases (Qwen2), norms of queries and keys (Qwen3), layers without
positions (SmolLM3), fused matrices (Phi-3), experts (Mixtral, Qwen3-MoE).
"""

from typing import Any

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import gguf_config
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.rope_config import read_rope
from frozen_jax.backbones.families.shared import (
  GGUF_LAYER,
  HF_LAYER,
  kinds,
  read_hf_common,
  stacked_mlp,
  stacked_qkv,
)
from frozen_jax.backbones.families.table import (
  Family,
  Part,
  TensorKey,
  TensorSource,
  embedding_keys,
  linear_keys,
  norm_keys,
)


def sizes(
  reader: ConfigReader,
  context: int = 2048,
  tied: bool = False,
  kv_heads: int | None = None,
  norm_eps: float = 1e-6,
) -> dict[str, Any]:
  """The fields that all of these families share.

  The arguments are what a file that leaves a key out means by that. kv_heads None: as many as there
  are heads, which a null always means.
  """
  read_hf_common(reader)
  heads, width = reader.integer("num_attention_heads"), reader.integer("hidden_size")
  kv_heads = reader.integer("num_key_value_heads", default=kv_heads, nullable=True)
  return {
    "vocab_size": reader.integer("vocab_size"),
    "width": width,
    "layers": reader.integer("num_hidden_layers"),
    "heads": heads,
    "kv_heads": heads if kv_heads is None else kv_heads,
    "head_dim": reader.integer("head_dim", default=width // max(heads, 1)),
    "mlp_width": reader.integer("intermediate_size"),
    "context": reader.integer("max_position_embeddings", default=context),
    "tied": reader.boolean("tie_word_embeddings", default=tied),
    "norm_eps": reader.number("rms_norm_eps", default=norm_eps),
    "activation": reader.string("hidden_act", default="silu", choices=decoder.ACTIVATIONS),
  }


def rotary(
  reader: ConfigReader, fields: dict[str, Any], theta: float = 10_000.0, fraction_key: str = ""
) -> dict[str, Any]:
  """The fields of the rotary positions; fraction_key: as of `read_rope`."""
  rope, fraction = read_rope(reader, fields["context"], theta, fraction_key=fraction_key)
  return {"rope": rope, "rotary_dim": int(fields["head_dim"] * fraction)}


def sliding(reader: ConfigReader, layers: int, window: int | None = None) -> dict[str, Any]:
  """The fields of sliding windows that all layers have where `sliding_window` is set."""
  window = reader.integer("sliding_window", default=window, nullable=True)
  return {"window": window, "kinds": ("sliding",) * layers} if window else {}


def switched_sliding(reader: ConfigReader, layers: int, by_layer: bool = True) -> dict[str, Any]:
  """The fields of sliding windows that `use_sliding_window` turns on.

  by_layer: in the layers that `layer_types` names, or else from some layer on; otherwise in all.
  """
  if not reader.boolean("use_sliding_window", default=False):
    return {}
  window = reader.integer("sliding_window", default=4096)
  full = reader.integer("max_window_layers", default=28) if by_layer else 0
  usual = tuple("full" if layer < full else "sliding" for layer in range(layers))
  stated = by_layer and "layer_types" in reader
  return {"window": window, "kinds": kinds(reader) if stated else usual}


def llama(reader: ConfigReader) -> DecoderConfig:
  fields = sizes(reader)
  bias = reader.boolean("attention_bias", default=False)
  return DecoderConfig(
    **fields,
    **rotary(reader, fields),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=reader.boolean("mlp_bias", default=False),
  )


def mistral(reader: ConfigReader) -> DecoderConfig:
  fields = sizes(reader, context=131_072, kv_heads=8)
  window = sliding(reader, fields["layers"], 4096)
  if window and "layer_types" in reader:  # for transformers' Auto classes it is a Ministral then
    window["kinds"] = kinds(reader)
  return DecoderConfig(**fields, **rotary(reader, fields), **window)


def qwen2(reader: ConfigReader) -> DecoderConfig:
  fields = sizes(reader, context=32_768, kv_heads=32)
  window = switched_sliding(reader, fields["layers"])
  return DecoderConfig(**fields, **rotary(reader, fields), **window, qkv_bias=True)


def _qwen3(reader: ConfigReader, kv_heads: int, by_layer: bool = True) -> dict[str, Any]:
  fields = sizes(reader, context=32_768, kv_heads=kv_heads)
  reader.expect(use_qk_norm=True)
  bias = reader.boolean("attention_bias", default=False)
  return {
    **fields,
    **rotary(reader, fields),
    **switched_sliding(reader, fields["layers"], by_layer),
    "qkv_bias": bias,
    "out_bias": bias,
    "qk_norm": True,
  }


def qwen3(reader: ConfigReader) -> DecoderConfig:
  return DecoderConfig(**_qwen3(reader, kv_heads=32))


def smollm3(reader: ConfigReader) -> DecoderConfig:
  fields = sizes(reader, context=32_768, tied=True, kv_heads=4)
  layers = fields["layers"]
  every = reader.integer("no_rope_layer_interval", default=4)
  usual = tuple(int((layer + 1) % every != 0) for layer in range(layers))
  rotated = reader.sequence("no_rope_layers", default=usual)
  reader.expect(use_sliding_window=False, layer_types=(["full_attention"] * layers,))
  bias = reader.boolean("attention_bias", default=False)
  return DecoderConfig(
    **fields,
    **rotary(reader, fields, theta=2_000_000.0),
    kinds=tuple("full" if turned else "unrotated" for turned in rotated),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=reader.boolean("mlp_bias", default=False),
  )


def phi3(reader: ConfigReader) -> DecoderConfig:
  fields = sizes(reader, context=4096, norm_eps=1e-5)
  positions = rotary(reader, fields, fraction_key="partial_rotary_factor")
  if positions["rope"].kind not in ("default", "longrope"):
    reader.reject("rope_scaling")
    reader.reject("rope_parameters")
  return DecoderConfig(**fields, **positions, **sliding(reader, fields["layers"]))


def mixtral(reader: ConfigReader) -> DecoderConfig:
  reader.rename(num_experts="num_local_experts")
  fields = sizes(reader, context=131_072, kv_heads=8, norm_eps=1e-5)
  return DecoderConfig(
    **fields,
    **rotary(reader, fields, theta=1_000_000.0),
    **sliding(reader, fields["layers"]),
    experts=reader.integer("num_local_experts", default=8),
    experts_per_token=reader.integer("num_experts_per_tok", default=2),
  )


def qwen3_moe(reader: ConfigReader) -> DecoderConfig:
  reader.rename(num_experts="num_local_experts")
  fields = _qwen3(reader, kv_heads=4, by_layer=False)
  reader.expect(decoder_sparse_step=1, mlp_only_layers=([],))  # every layer has experts
  return DecoderConfig(
    **fields | {"mlp_width": reader.integer("moe_intermediate_size", default=768)},
    experts=reader.integer("num_local_experts", default=128),
    experts_per_token=reader.integer("num_experts_per_tok", default=8),
    renormalise=reader.boolean("norm_topk_prob", default=False),
  )


def _mlp(name: str, hf: str, gguf: str) -> tuple[TensorKey, ...]:
  return linear_keys(
    f"layers/mlp/{name}", f"model.layers.{{layer}}.mlp.{hf}", f"blk.{{layer}}.ffn_{gguf}"
  )


def _experts(block: str, names: dict[str, str]) -> tuple[TensorKey, ...]:
  """The keys of router and experts (`GGUFFile` splits a layer's tensor into one per expert)."""
  base = f"model.layers.{{layer}}.{block}"
  router = linear_keys("layers/mlp/router", f"{base}.gate", "blk.{layer}.ffn_gate_inp")
  return router + tuple(
    TensorKey(
      f"layers/experts/{ours}/kernel",
      TensorSource(f"{base}.experts.{{expert}}.{theirs}.weight", transpose=True),
      TensorSource(f"blk.{{layer}}.ffn_{ours}.{{expert}}.weight", transpose=True),
    )
    for ours, theirs in names.items()
  )


_FRAME = (
  *embedding_keys("embed/tokens", "model.embed_tokens", "token_embd"),
  *norm_keys("layers/attn_norm", f"{HF_LAYER}.input_layernorm", f"{GGUF_LAYER}.attn_norm"),
  *norm_keys("layers/mlp_norm", f"{HF_LAYER}.post_attention_layernorm", f"{GGUF_LAYER}.ffn_norm"),
  *linear_keys("layers/attn/o", f"{HF_LAYER}.self_attn.o_proj", f"{GGUF_LAYER}.attn_output"),
  *norm_keys("final_norm", "model.norm", "output_norm"),
  *linear_keys("head", "lm_head", "output"),
)


def _attention(permuted: bool) -> tuple[TensorKey, ...]:
  heads = {"q": "heads", "k": "kv_heads", "v": None} if permuted else {}
  keys: tuple[TensorKey, ...] = ()
  for name in "qkv":
    hf, gguf = f"{HF_LAYER}.self_attn.{name}_proj", f"{GGUF_LAYER}.attn_{name}"
    keys += linear_keys(f"layers/attn/{name}", hf, gguf, permuted=heads.get(name))
  for name in "qk":
    hf, gguf = f"{HF_LAYER}.self_attn.{name}_norm", f"{GGUF_LAYER}.attn_{name}_norm"
    keys += norm_keys(f"layers/attn/{name}_norm", hf, gguf)
  return keys


_PLAIN_MLP = (
  *_mlp("gate", "gate_proj", "gate"),
  *_mlp("up", "up_proj", "up"),
  *_mlp("down", "down_proj", "down"),
)
# Llama and Mixtral share their keys: both are "llama" in GGUF files, with experts or without.
_PERMUTED = (
  *_FRAME,
  *_attention(permuted=True),
  *_PLAIN_MLP,
  *_experts("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
)
_STRAIGHT = (*_FRAME, *_attention(permuted=False), *_PLAIN_MLP)
_PHI3 = (
  *_FRAME,
  *_mlp("down", "down_proj", "down"),
  *(
    key
    for index, name in enumerate("qkv")
    for part in [Part(stacked_qkv, index)]
    for key in linear_keys(
      f"layers/attn/{name}",
      f"{HF_LAYER}.self_attn.qkv_proj",
      f"{GGUF_LAYER}.attn_qkv",
      hf_part=part,
      gguf_part=part,
    )
  ),
  *(
    key
    for index, name in enumerate(("gate", "up"))
    for part in [Part(stacked_mlp, index)]
    for key in linear_keys(
      f"layers/mlp/{name}",
      f"{HF_LAYER}.mlp.gate_up_proj",
      f"{GGUF_LAYER}.ffn_up",
      hf_part=part,
      gguf_part=part,
    )
  ),
)


def _family(name: str, read_hf: Any, keys: tuple[TensorKey, ...], gguf: str = "") -> Family:
  read_gguf = getattr(gguf_config, name) if gguf else None
  derived = gguf_config.ROPE_TENSORS
  return Family(name, decoder, keys, read_hf, gguf, read_gguf, prefix="model.", derived=derived)


FAMILIES = (
  _family("llama", llama, _PERMUTED, gguf="llama"),
  _family("mistral", mistral, _PERMUTED),
  _family("qwen2", qwen2, _STRAIGHT, gguf="qwen2"),
  _family("qwen3", qwen3, _STRAIGHT, gguf="qwen3"),
  _family("smollm3", smollm3, _PERMUTED, gguf="smollm3"),
  _family("phi3", phi3, _PHI3, gguf="phi3"),
  _family("mixtral", mixtral, _PERMUTED),
  _family(
    "qwen3_moe",
    qwen3_moe,
    (
      *_STRAIGHT,
      *_experts("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    ),
    gguf="qwen3moe",
  ),
)
