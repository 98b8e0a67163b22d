"""The settings of GGUF files -> configs: a reader for each architecture of llama.cpp that we have.

Keys are those of docs/gguf.md of ggml and gguf-py/gguf/constants.py; what they mean, and what
llama.cpp assumes where a file is silent, is in src/models/ of llama.cpp, what its converter writes
in conversion/. `GGUFFile` adds what only the tensors say: `tied`, which products have biases, and
the divisors of the rotary wavelengths (`rope_freqs`, `rope_factors_long`, `rope_factors_short`).

GGUF has no word for the sliding window of Mistral's first 7B (architecture "llama"): llama.cpp and
we compute it without, which differs from transformers beyond 4096 tokens.
"""

import math
from typing import Any

from frozen_jax.backbones.config import DecoderConfig, Kind, Rope
from frozen_jax.backbones.families.settings import REQUIRED, Settings

# Regular expressions of the tensors that are read as settings.
ROPE_TENSORS = (r"rope_(freqs|factors_long|factors_short)\.weight",)

_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def llama(s: Settings) -> DecoderConfig:
  """Llama, Mistral and Mixtral."""
  fields = _frame(s)
  s.only(**{"rope.dimension_count": fields["head_dim"]})
  return DecoderConfig(**fields, **_experts(s), rope=_rope(s, fields))


def qwen2(s: Settings) -> DecoderConfig:
  fields = _frame(s)
  return DecoderConfig(**fields, **_rotary(s, fields))


def qwen3(s: Settings) -> DecoderConfig:
  fields = _frame(s)
  return DecoderConfig(**fields, **_rotary(s, fields), qk_norm=True)


def qwen3_moe(s: Settings) -> DecoderConfig:
  fields = _frame(s) | {"mlp_width": s.whole("expert_feed_forward_length")}
  return DecoderConfig(**fields, **_experts(s), **_rotary(s, fields), qk_norm=True)


def smollm3(s: Settings) -> DecoderConfig:
  fields = _frame(s)
  s.only(**{"rope.dimension_count": fields["head_dim"]})
  # Every fourth layer has no positions: the file does not say so, llama.cpp knows it.
  kinds: tuple[Kind, ...] = tuple(
    "full" if (i + 1) % 4 else "unrotated" for i in range(fields["layers"])
  )
  return DecoderConfig(**fields, rope=_rope(s, fields), kinds=kinds)


def phi3(s: Settings) -> DecoderConfig:
  fields = _frame(s)
  window = s.whole("attention.sliding_window")  # 0: none
  sliding = {"window": window, "kinds": ("sliding",) * fields["layers"]} if window else {}
  return DecoderConfig(**fields, **_rotary(s, fields), **sliding)


def gemma(s: Settings) -> DecoderConfig:
  fields = _gemma(s)
  return DecoderConfig(**fields, **_rotary(s, fields))


def gemma2(s: Settings) -> DecoderConfig:
  fields = _gemma(s)
  return DecoderConfig(
    **fields,
    **_rotary(s, fields),
    **_alternating(s, fields, period=2, window=4096, largest=46),
    score_cap=s.number("attn_logit_softcapping", default=50.0),
    logit_cap=s.number("final_logit_softcapping", default=30.0),
  )


def gemma3(s: Settings) -> DecoderConfig:
  fields = _gemma(s)
  return DecoderConfig(
    **fields,
    **_rotary(s, fields, theta=REQUIRED),
    **_alternating(s, fields, period=6, window=0, largest=62),
    local_rope=Rope(s.number("rope.freq_base_swa", default=1e4)),
    qk_norm=True,
    logit_cap=s.number("final_logit_softcapping", default=None),
  )


def gpt2(s: Settings) -> DecoderConfig:
  fields = _frame(s, _LAYER)
  return DecoderConfig(**fields, **_PLAIN, positions="learned", activation="gelu_new")


def gpt_neox(s: Settings) -> DecoderConfig:
  fields = _frame(s, _LAYER)
  parallel = s.flag("use_parallel_residual")
  # The file does not name the activation: Pythia's is the exact GELU, as transformers' default.
  return DecoderConfig(
    **fields, **_PLAIN, **_rotary(s, fields), parallel=parallel, activation="gelu"
  )


def bloom(s: Settings) -> DecoderConfig:
  fields = _frame(s, _LAYER)
  s.only(**{"attention.max_alibi_bias": 8.0})
  return DecoderConfig(
    **fields, **_PLAIN, positions="alibi", embed_norm=True, activation="gelu_new"
  )


_PLAIN: dict[str, Any] = {"norm": "layer", "gated": False}


def _frame(s: Settings, epsilon: str = _RMS) -> dict[str, Any]:
  """The fields that all architectures spell alike."""
  s.silent("tensor_data_layout", "rope.scaling.finetuned")
  s.only(**{"attention.causal": True})
  heads, width = s.whole("attention.head_count"), s.whole("embedding_length")
  head_dim = s.whole("attention.key_length", default=width // max(heads, 1))
  s.only(**{"attention.value_length": head_dim})
  return {
    "vocab_size": s.whole("vocab_size"),
    "width": width,
    "layers": s.whole("block_count"),
    "heads": heads,
    "kv_heads": s.whole("attention.head_count_kv", default=heads),
    "head_dim": head_dim,
    "mlp_width": s.whole("feed_forward_length"),
    "context": s.whole("context_length", default=2048),
    "tied": s.flag("tied"),
    "norm_eps": s.number(epsilon),
    "qkv_bias": s.flag("qkv_bias"),
    "out_bias": s.flag("out_bias"),
    "mlp_bias": s.flag("mlp_bias"),
  }


def _gemma(s: Settings) -> dict[str, Any]:
  fields = _frame(s)
  return fields | {
    "embed_scale": fields["width"] ** 0.5,
    "norm_offset": 1.0,
    "activation": "gelu_pytorch_tanh",
  }


def _alternating(
  s: Settings, fields: dict[str, Any], period: int, window: int, largest: int
) -> dict[str, Any]:
  """The fields of Gemma 2 and 3, where every `period`-th layer sees the whole text.

  window: where the file is silent; 0 is none. largest: the layers of the 27B model, which alone
  scales queries by width / heads instead of the size of a head; the file does not say that.
  """
  heads, layers = max(fields["heads"], 1), fields["layers"]
  scaled_by = fields["width"] // heads if layers == largest else fields["head_dim"]
  window = s.whole("attention.sliding_window", default=window)
  period = max(s.whole("attention.sliding_window_pattern", default=period), 1)
  kinds = tuple("sliding" if (i + 1) % period else "full" for i in range(layers))
  return {
    "norm_after": True,
    "query_scale": max(scaled_by, 1) ** -0.5,
    "window": window or None,
    "kinds": kinds if window and "sliding" in kinds else (),
  }


def _experts(s: Settings) -> dict[str, Any]:
  """The fields of a mixture of experts; the chosen ones' weights sum to 1 in llama.cpp always."""
  s.only(expert_weights_norm=True, expert_weights_scale=1.0, expert_gating_func=1)
  count, chosen = s.whole("expert_count", default=0), s.whole("expert_used_count", default=0)
  return {"experts": count, "chosen": chosen if count else 0}


def _rotary(s: Settings, fields: dict[str, Any], theta: Any = 1e4) -> dict[str, Any]:
  """The fields of rotary positions where a part of each head may be rotated."""
  size = s.whole("rope.dimension_count", default=fields["head_dim"])
  return {"rotary_dim": size, "rope": _rope(s, fields | {"rotary_dim": size}, theta)}


def _rope(s: Settings, fields: dict[str, Any], theta: Any = 1e4) -> Rope:
  theta = s.number("rope.freq_base", default=theta)
  pairs = fields.get("rotary_dim", fields["head_dim"]) // 2
  kind = s.word("rope.scaling.type", default="none", among=("none", "linear", "yarn", "longrope"))
  s.only(**{"rope.scale_linear": 1.0})
  original = s.whole("rope.scaling.original_context_length", default=fields["context"])
  if "rope_factors_long" in s or kind == "longrope":
    return Rope(
      theta,
      "longrope",
      original=original,
      short=_divisors(s, "rope_factors_short", pairs),
      long=_divisors(s, "rope_factors_long", pairs),
      magnitude=s.number("rope.scaling.attn_factor", default=1.0),
    )
  if kind == "yarn":
    factor = s.number("rope.scaling.factor")
    # llama.cpp multiplies the usual magnitude by these, its converter writes them as if they
    # replaced it: whichever the author of a file meant, we cannot know.
    s.only(**{"rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": ()})
    s.only(**{"rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0})
    return Rope(
      theta,
      kind,
      factor,
      original,
      slow=s.number("rope.scaling.yarn_beta_slow", default=1.0),
      fast=s.number("rope.scaling.yarn_beta_fast", default=32.0),
      magnitude=0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0,
    )
  if kind == "linear":
    return Rope(theta, kind, s.number("rope.scaling.factor"))
  s.only(**{"rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0})
  if "rope_freqs" in s:  # how the converter writes Llama 3's scaling: the same at every length
    divisors = _divisors(s, "rope_freqs", pairs)
    return Rope(theta, "longrope", original=original, short=divisors, long=divisors)
  return Rope(theta)


def _divisors(s: Settings, key: str, pairs: int) -> tuple[float, ...]:
  found = s.numbers(key)
  if found and len(found) != pairs:
    raise ValueError(f"{key} has {len(found)} divisors for the {pairs} pairs that are rotated")
  return found
