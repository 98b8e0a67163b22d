"""Llama and its kin: Mistral, Mixtral, Qwen 2 and 3, Qwen3-MoE, SmolLM3, Phi-3.

RMS norms before attention and MLP, rotary positions, grouped queries, gated MLPs. What sets them
apart: sliding windows (Mistral), biases of the queries, keys and values (Qwen2), norms of each
head (Qwen3), layers without positions (SmolLM3), fused products (Phi-3), experts (the two MoEs).
"""

from typing import Any

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import gguf_settings
from frozen_jax.backbones.families.rope_settings import read_rope
from frozen_jax.backbones.families.settings import Settings
from frozen_jax.backbones.families.shared import hf_common, kinds, stacked_mlp, stacked_qkv
from frozen_jax.backbones.families.table import Family, Key, Part, Source, linear, norm, table


def sizes(s: Settings, context: int = 2048, tied: bool = False) -> dict[str, Any]:
  """The fields that all of these families read alike."""
  hf_common(s)
  heads, width = s.whole("num_attention_heads"), s.whole("hidden_size")
  return {
    "vocab_size": s.whole("vocab_size"),
    "width": width,
    "layers": s.whole("num_hidden_layers"),
    "heads": heads,
    "kv_heads": s.whole("num_key_value_heads", default=heads),
    "head_dim": s.whole("head_dim", default=width // max(heads, 1)),
    "mlp_width": s.whole("intermediate_size"),
    "context": s.whole("max_position_embeddings", default=context),
    "tied": s.flag("tie_word_embeddings", default=tied),
    "norm_eps": s.number("rms_norm_eps", default=1e-6),
    "activation": s.word("hidden_act", default="silu", among=decoder.ACTIVATIONS),
  }


def rotary(s: Settings, fields: dict[str, Any], theta: float = 10_000.0) -> dict[str, Any]:
  """The fields of the rotary positions."""
  rope, fraction = read_rope(s, fields["context"], theta)
  return {"rope": rope, "rotary_dim": int(fields["head_dim"] * fraction)}


def sliding(s: Settings, layers: int, window: int | None = None) -> dict[str, Any]:
  """The fields of sliding windows, where `sliding_window` alone turns them on."""
  window = s.whole("sliding_window", default=window, nullable=True)
  return {"window": window, "kinds": kinds(s, layers, window) if window else ()}


def switched_sliding(s: Settings, layers: int) -> dict[str, Any]:
  """The fields of sliding windows where `use_sliding_window` turns them on from some layer on."""
  window = s.whole("sliding_window", default=4096)
  full = s.whole("max_window_layers", default=28)
  if not s.flag("use_sliding_window", default=False):
    s.silent("layer_types")
    return {}
  stated = kinds(s, layers, None)
  return {"window": window, "kinds": stated or tuple(_from_layer(full, layers))}


def _from_layer(full: int, layers: int) -> list[str]:
  return ["full" if layer < full else "sliding" for layer in range(layers)]


def llama(s: Settings) -> DecoderConfig:
  fields = sizes(s)
  s.only(rope_interleaved=False)
  bias = s.flag("attention_bias", default=False)
  return DecoderConfig(
    **fields,
    **rotary(s, fields),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=s.flag("mlp_bias", default=False),
  )


def mistral(s: Settings) -> DecoderConfig:
  fields = sizes(s, context=131_072)
  return DecoderConfig(**fields, **rotary(s, fields), **sliding(s, fields["layers"], 4096))


def qwen2(s: Settings) -> DecoderConfig:
  fields = sizes(s, context=32_768)
  window = switched_sliding(s, fields["layers"])
  return DecoderConfig(**fields, **rotary(s, fields), **window, qkv_bias=True)


def _qwen3(s: Settings) -> dict[str, Any]:
  fields = sizes(s, context=32_768)
  bias = s.flag("attention_bias", default=False)
  return {
    **fields,
    **rotary(s, fields),
    **switched_sliding(s, fields["layers"]),
    "qkv_bias": bias,
    "out_bias": bias,
    "qk_norm": True,
  }


def qwen3(s: Settings) -> DecoderConfig:
  return DecoderConfig(**_qwen3(s))


def smollm3(s: Settings) -> DecoderConfig:
  fields = sizes(s, context=32_768, tied=True)
  layers = fields["layers"]
  every = s.whole("no_rope_layer_interval", default=4)
  usual = tuple(int((layer + 1) % every != 0) for layer in range(layers))
  rotated = s.numbers("no_rope_layers", default=usual)
  s.only(use_sliding_window=False, layer_types=(["full_attention"] * layers,))
  s.silent("sliding_window", "max_window_layers")
  bias = s.flag("attention_bias", default=False)
  return DecoderConfig(
    **fields,
    **rotary(s, fields, theta=2_000_000.0),
    kinds=tuple("full" if turned else "unrotated" for turned in rotated),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=s.flag("mlp_bias", default=False),
  )


def phi3(s: Settings) -> DecoderConfig:
  fields = sizes(s, context=4096)
  return DecoderConfig(**fields, **rotary(s, fields), **sliding(s, fields["layers"]))


def mixtral(s: Settings) -> DecoderConfig:
  fields = sizes(s, context=131_072)
  return DecoderConfig(
    **fields,
    **rotary(s, fields, theta=1_000_000.0),
    **sliding(s, fields["layers"]),
    experts=s.whole("num_local_experts", default=8),
    chosen=s.whole("num_experts_per_tok", default=2),
  )


def qwen3_moe(s: Settings) -> DecoderConfig:
  fields = _qwen3(s)
  s.only(decoder_sparse_step=1, mlp_only_layers=([],))  # every layer has experts
  return DecoderConfig(
    **fields | {"mlp_width": s.whole("moe_intermediate_size", default=768)},
    experts=s.whole("num_experts", "num_local_experts", default=128),
    chosen=s.whole("num_experts_per_tok", default=8),
    renormalise=s.flag("norm_topk_prob", default=False),
  )


def _mlp(name: str, hf: str, gguf: str) -> tuple[Key, ...]:
  return linear(
    f"layers/mlp/{name}", f"model.layers.{{layer}}.mlp.{hf}", f"blk.{{layer}}.ffn_{gguf}"
  )


def _experts(block: str, names: dict[str, str]) -> tuple[Key, ...]:
  """The keys of router and experts (`GGUFFile` names each expert of a layer's one tensor)."""
  base = f"model.layers.{{layer}}.{block}"
  router = linear("layers/mlp/router", f"{base}.gate", "blk.{layer}.ffn_gate_inp")
  return router + tuple(
    Key(
      f"layers/experts/{ours}/kernel",
      Source(f"{base}.experts.{{expert}}.{theirs}.weight", transpose=True),
      Source(f"blk.{{layer}}.ffn_{ours}.{{expert}}.weight", transpose=True),
    )
    for ours, theirs in names.items()
  )


_HF, _GGUF = "model.layers.{layer}", "blk.{layer}"
_FRAME = (
  *table("embed/tokens", "model.embed_tokens", "token_embd"),
  *norm("layers/attn_norm", f"{_HF}.input_layernorm", f"{_GGUF}.attn_norm"),
  *norm("layers/mlp_norm", f"{_HF}.post_attention_layernorm", f"{_GGUF}.ffn_norm"),
  *linear("layers/attn/o", f"{_HF}.self_attn.o_proj", f"{_GGUF}.attn_output"),
  *norm("final_norm", "model.norm", "output_norm"),
  *linear("head", "lm_head", "output"),
)


def _attention(permuted: bool) -> tuple[Key, ...]:
  heads = {"q": "heads", "k": "kv_heads", "v": None} if permuted else {}
  keys: tuple[Key, ...] = ()
  for name in "qkv":
    hf, gguf = f"{_HF}.self_attn.{name}_proj", f"{_GGUF}.attn_{name}"
    keys += linear(f"layers/attn/{name}", hf, gguf, permuted=heads.get(name))
  for name in "qk":
    hf, gguf = f"{_HF}.self_attn.{name}_norm", f"{_GGUF}.attn_{name}_norm"
    keys += norm(f"layers/attn/{name}_norm", hf, gguf)
  return keys


_PLAIN_MLP = (
  *_mlp("gate", "gate_proj", "gate"),
  *_mlp("up", "up_proj", "up"),
  *_mlp("down", "down_proj", "down"),
)
# Llama's keys and Mixtral's are the same: both are "llama" in GGUF files, experts or not.
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
    for key in linear(
      f"layers/attn/{name}",
      f"{_HF}.self_attn.qkv_proj",
      f"{_GGUF}.attn_qkv",
      hf_part=part,
      gguf_part=part,
    )
  ),
  *(
    key
    for index, name in enumerate(("gate", "up"))
    for part in [Part(stacked_mlp, index)]
    for key in linear(
      f"layers/mlp/{name}",
      f"{_HF}.mlp.gate_up_proj",
      f"{_GGUF}.ffn_up",
      hf_part=part,
      gguf_part=part,
    )
  ),
)
_DERIVED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", *gguf_settings.ROPE_TENSORS)


def _family(name: str, read_hf: Any, keys: tuple[Key, ...], gguf: str = "") -> Family:
  read_gguf = getattr(gguf_settings, name) if gguf else None
  return Family(name, decoder, keys, read_hf, gguf, read_gguf, prefix="model.", derived=_DERIVED)


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
