"""The metadata of GGUF files -> configs: one function for each supported llama.cpp architecture.

The keys are in docs/gguf.md of ggml and gguf-py/gguf/constants.py; their meaning and defaults are
in src/models/ of llama.cpp, what its converter writes in conversion/. `GGUFFile` adds keys for what
follows from the tensors alone: `tied`, which linear layers have biases, and the divisors of the
rotary wavelengths (`rope_freqs`, `rope_factors_long`, `rope_factors_short`).

GGUF has no key for the sliding window of Mistral's first 7B (architecture "llama"). Like llama.cpp,
frozen_jax runs it with full attention, which differs from transformers beyond 4096 tokens.
"""

import math
from typing import Any

from frozen_jax.backbones.config import DecoderConfig, Kind, Rope
from frozen_jax.backbones.families.config_reader import REQUIRED, ConfigReader

# Regular expressions of the tensors that are read into the config.
ROPE_TENSORS = (r"rope_(freqs|factors_long|factors_short)\.weight",)

_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def llama(reader: ConfigReader) -> DecoderConfig:
  """Llama, Mistral and Mixtral."""
  fields = _frame(reader)
  reader.expect(**{"rope.dimension_count": fields["head_dim"]})
  return DecoderConfig(**fields, **_experts(reader), rope=_rope(reader, fields))


def qwen2(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader)
  return DecoderConfig(**fields, **_rotary(reader, fields))


def qwen3(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader)
  return DecoderConfig(**fields, **_rotary(reader, fields), qk_norm=True)


def qwen3_moe(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader) | {"mlp_width": reader.integer("expert_feed_forward_length")}
  return DecoderConfig(**fields, **_experts(reader), **_rotary(reader, fields), qk_norm=True)


def smollm3(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader)
  reader.expect(**{"rope.dimension_count": fields["head_dim"]})
  # Every fourth layer has no positions; no key says so, it is hard-coded in llama.cpp.
  kinds: tuple[Kind, ...] = tuple(
    "full" if (i + 1) % 4 else "unrotated" for i in range(fields["layers"])
  )
  return DecoderConfig(**fields, rope=_rope(reader, fields), kinds=kinds)


def phi3(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader)
  window = reader.integer("attention.sliding_window")  # 0: none
  sliding = {"window": window, "kinds": ("sliding",) * fields["layers"]} if window else {}
  return DecoderConfig(**fields, **_rotary(reader, fields), **sliding)


def gemma(reader: ConfigReader) -> DecoderConfig:
  fields = _gemma(reader)
  return DecoderConfig(**fields, **_rotary(reader, fields))


def gemma2(reader: ConfigReader) -> DecoderConfig:
  fields = _gemma(reader)
  return DecoderConfig(
    **fields,
    **_rotary(reader, fields),
    **_alternating(reader, fields, period=2, window=4096, largest=46),
    score_cap=reader.number("attn_logit_softcapping", default=50.0),
    logit_cap=reader.number("final_logit_softcapping", default=30.0),
  )


def gemma3(reader: ConfigReader) -> DecoderConfig:
  fields = _gemma(reader)
  return DecoderConfig(
    **fields,
    **_rotary(reader, fields, theta=REQUIRED),
    **_alternating(reader, fields, period=6, window=0, largest=62),
    local_rope=Rope(reader.number("rope.freq_base_swa", default=1e4)),
    qk_norm=True,
    logit_cap=reader.number("final_logit_softcapping", default=None),
  )


def gpt2(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader, _LAYER)
  return DecoderConfig(**fields, **_PLAIN, positions="learned", activation="gelu_new")


def gpt_neox(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader, _LAYER)
  parallel = reader.boolean("use_parallel_residual")
  # There is no key for the activation: Pythia's is the exact GELU, transformers' default.
  return DecoderConfig(
    **fields, **_PLAIN, **_rotary(reader, fields), parallel=parallel, activation="gelu"
  )


def bloom(reader: ConfigReader) -> DecoderConfig:
  fields = _frame(reader, _LAYER)
  reader.expect(**{"attention.max_alibi_bias": 8.0})
  return DecoderConfig(
    **fields, **_PLAIN, positions="alibi", embed_norm=True, activation="gelu_new"
  )


_PLAIN: dict[str, Any] = {"norm": "layer", "gated": False}


def _frame(reader: ConfigReader, epsilon: str = _RMS) -> dict[str, Any]:
  """The fields with the same keys in all architectures."""
  reader.ignore("tensor_data_layout", "rope.scaling.finetuned")
  reader.expect(**{"attention.causal": True})
  heads, width = reader.integer("attention.head_count"), reader.integer("embedding_length")
  head_dim = reader.integer("attention.key_length", default=width // max(heads, 1))
  reader.expect(**{"attention.value_length": head_dim})
  return {
    "vocab_size": reader.integer("vocab_size"),
    "width": width,
    "layers": reader.integer("block_count"),
    "heads": heads,
    "kv_heads": reader.integer("attention.head_count_kv", default=heads),
    "head_dim": head_dim,
    "mlp_width": reader.integer("feed_forward_length"),
    "context": reader.integer("context_length", default=2048),
    "tied": reader.boolean("tied"),
    "norm_eps": reader.number(epsilon),
    "qkv_bias": reader.boolean("qkv_bias"),
    "out_bias": reader.boolean("out_bias"),
    "mlp_bias": reader.boolean("mlp_bias"),
  }


def _gemma(reader: ConfigReader) -> dict[str, Any]:
  fields = _frame(reader)
  return fields | {
    "embed_scale": fields["width"] ** 0.5,
    "norm_offset": 1.0,
    "activation": "gelu_pytorch_tanh",
  }


def _alternating(
  reader: ConfigReader, fields: dict[str, Any], period: int, window: int, largest: int
) -> dict[str, Any]:
  """The fields of Gemma 2 and 3, where every `period`-th layer has full attention.

  window: the default; 0 is none. largest: the number of layers of the 27B model, the only one that
  scales queries by width / heads instead of the head dimension; there is no key for it.
  """
  heads, layers = max(fields["heads"], 1), fields["layers"]
  scaled_by = fields["width"] // heads if layers == largest else fields["head_dim"]
  window = reader.integer("attention.sliding_window", default=window)
  period = max(reader.integer("attention.sliding_window_pattern", default=period), 1)
  kinds = tuple("sliding" if (i + 1) % period else "full" for i in range(layers))
  return {
    "norm_after": True,
    "query_scale": max(scaled_by, 1) ** -0.5,
    "window": window or None,
    "kinds": kinds if window and "sliding" in kinds else (),
  }


def _experts(reader: ConfigReader) -> dict[str, Any]:
  """The fields of a mixture of experts; llama.cpp always normalises the router's weights to 1."""
  reader.expect(expert_weights_norm=True, expert_weights_scale=1.0, expert_gating_func=1)
  count = reader.integer("expert_count", default=0)
  chosen = reader.integer("expert_used_count", default=0)
  return {"experts": count, "experts_per_token": chosen if count else 0}


def _rotary(reader: ConfigReader, fields: dict[str, Any], theta: Any = 1e4) -> dict[str, Any]:
  """The fields of rotary positions that may rotate only a part of each head."""
  size = reader.integer("rope.dimension_count", default=fields["head_dim"])
  return {"rotary_dim": size, "rope": _rope(reader, fields | {"rotary_dim": size}, theta)}


def _rope(reader: ConfigReader, fields: dict[str, Any], theta: Any = 1e4) -> Rope:
  theta = reader.number("rope.freq_base", default=theta)
  pairs = fields.get("rotary_dim", fields["head_dim"]) // 2
  kind = reader.string(
    "rope.scaling.type", default="none", choices=("none", "linear", "yarn", "longrope")
  )
  reader.expect(**{"rope.scale_linear": 1.0})
  original = reader.integer("rope.scaling.original_context_length", default=fields["context"])
  if "rope_factors_long" in reader or kind == "longrope":
    return Rope(
      theta,
      "longrope",
      original_context=original,
      short_factor=_divisors(reader, "rope_factors_short", pairs),
      long_factor=_divisors(reader, "rope_factors_long", pairs),
      attention_factor=reader.number("rope.scaling.attn_factor", default=1.0),
    )
  if kind == "yarn":
    factor = reader.number("rope.scaling.factor")
    # llama.cpp multiplies the default magnitude by these, but its converter writes them as if they
    # replaced it: which of the two a file means is unknown.
    reader.expect(**{"rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": ()})
    reader.expect(**{"rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0})
    return Rope(
      theta,
      kind,
      factor,
      original,
      beta_slow=reader.number("rope.scaling.yarn_beta_slow", default=1.0),
      beta_fast=reader.number("rope.scaling.yarn_beta_fast", default=32.0),
      attention_factor=0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0,
    )
  if kind == "linear":
    return Rope(theta, kind, reader.number("rope.scaling.factor"))
  reader.expect(**{"rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0})
  if "rope_freqs" in reader:  # how the converter writes Llama 3's scaling: the same at every length
    divisors = _divisors(reader, "rope_freqs", pairs)
    return Rope(
      theta, "longrope", original_context=original, short_factor=divisors, long_factor=divisors
    )
  return Rope(theta)


def _divisors(reader: ConfigReader, key: str, pairs: int) -> tuple[float, ...]:
  divisors = reader.sequence(key)
  if divisors and len(divisors) != pairs:
    raise ValueError(f"{key} has {len(divisors)} divisors for the {pairs} pairs that are rotated")
  return divisors
