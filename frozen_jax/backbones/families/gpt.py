"""GPT-like models: GPT-2, GPT-NeoX (Pythia), GPT-J, OPT and BLOOM.

Layer norms with biases, ungated MLPs. Positions are learned (GPT-2; OPT, whose table has an offset
of two rows), rotary on a part of each head (GPT-NeoX; GPT-J, interleaved), or ALiBi (BLOOM).
GPT-NeoX and GPT-J run attention and MLP in parallel.
"""

from typing import Any

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.families import gguf_config
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.rope_config import read_rope
from frozen_jax.backbones.families.shared import (
  GGUF_LAYER,
  headwise_qkv,
  read_hf_common,
  stacked_qkv,
)
from frozen_jax.backbones.families.table import (
  Family,
  Part,
  TensorKey,
  embedding_keys,
  linear_keys,
  norm_keys,
)


def _fields(
  reader: ConfigReader, heads: int, width: int, mlp_width: int | None, **more: Any
) -> dict[str, Any]:
  read_hf_common(reader)
  return {
    "vocab_size": reader.integer("vocab_size"),
    "width": width,
    "heads": heads,
    "kv_heads": heads,
    "head_dim": width // max(heads, 1),
    "mlp_width": mlp_width or 4 * width,
    "norm": "layer",
    "gated": False,
    **more,
  }


def _biases(on: bool = True) -> dict[str, bool]:
  return {"qkv_bias": on, "out_bias": on, "mlp_bias": on}


_NAMES = {
  "hidden_size": "n_embd",
  "num_hidden_layers": "n_layer",
  "num_attention_heads": "n_head",
  "max_position_embeddings": "n_positions",
}


def gpt2(reader: ConfigReader) -> DecoderConfig:
  reader.rename(**_NAMES)
  width = reader.integer("n_embd", default=768)
  reader.expect(
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    reorder_and_upcast_attn=(False, True),  # the same scores, at another precision
  )
  return DecoderConfig(
    **_fields(
      reader, reader.integer("n_head", default=12), width, reader.integer("n_inner", default=None)
    ),
    **_biases(),
    layers=reader.integer("n_layer", default=12),
    context=reader.integer("n_positions", default=1024),
    positions="learned",
    norm_eps=reader.number("layer_norm_epsilon", default=1e-5),
    tied=reader.boolean("tie_word_embeddings", default=True),
    activation=reader.string(
      "activation_function", default="gelu_new", choices=decoder.ACTIVATIONS
    ),
  )


def gpt_neox(reader: ConfigReader) -> DecoderConfig:
  width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
  context = reader.integer("max_position_embeddings", default=2048)
  reader.expect(head_dim=width // max(heads, 1))
  rope, fraction = read_rope(
    reader, context, theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25
  )
  bias = reader.boolean("attention_bias", default=True)
  return DecoderConfig(
    **_fields(reader, heads, width, reader.integer("intermediate_size")),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    layers=reader.integer("num_hidden_layers"),
    context=context,
    rope=rope,
    rotary_dim=int(width // max(heads, 1) * fraction),
    parallel=reader.boolean("use_parallel_residual", default=True),
    norm_eps=reader.number("layer_norm_eps", default=1e-5),
    tied=reader.boolean("tie_word_embeddings", default=False),
    activation=reader.string("hidden_act", default="gelu", choices=decoder.ACTIVATIONS),
  )


def gptj(reader: ConfigReader) -> DecoderConfig:
  reader.rename(**_NAMES)
  width, heads = reader.integer("n_embd", default=4096), reader.integer("n_head", default=16)
  turned = reader.integer("rotary_dim", default=64, nullable=True)
  reader.expect(rotary=True, scale_attn_weights=True)
  return DecoderConfig(
    **_fields(reader, heads, width, reader.integer("n_inner", default=None)),
    mlp_bias=True,
    head_bias=True,
    layers=reader.integer("n_layer", default=28),
    context=reader.integer("n_positions", default=2048),
    rotary_dim=width // max(heads, 1) if turned is None else turned,
    interleaved=True,
    parallel=True,
    shared_norm=True,
    norm_eps=reader.number("layer_norm_epsilon", default=1e-5),
    tied=reader.boolean("tie_word_embeddings", default=False),
    activation=reader.string(
      "activation_function", default="gelu_new", choices=decoder.ACTIVATIONS
    ),
  )


def opt(reader: ConfigReader) -> DecoderConfig:
  width = reader.integer("hidden_size")
  reader.expect(
    do_layer_norm_before=True,
    _remove_final_layer_norm=False,
    word_embed_proj_dim=width,
    layer_norm_elementwise_affine=True,
    learned_embeddings=True,
    output_projection=True,
  )
  return DecoderConfig(
    **_fields(reader, reader.integer("num_attention_heads"), width, reader.integer("ffn_dim")),
    **_biases(reader.boolean("enable_bias", default=True)),
    layers=reader.integer("num_hidden_layers"),
    context=reader.integer("max_position_embeddings", default=2048),
    positions="learned",
    position_offset=2,
    tied=reader.boolean("tie_word_embeddings", default=True),
    activation=reader.string("activation_function", default="relu", choices=decoder.ACTIVATIONS),
  )


def bloom(reader: ConfigReader) -> DecoderConfig:
  reader.expect(apply_residual_connection_post_layernorm=False, slow_but_exact=(False, True))
  reader.rename(num_hidden_layers="n_layer", num_attention_heads="n_head", n_embed="hidden_size")
  heads = reader.integer("n_head", default=8)
  return DecoderConfig(
    **_fields(reader, heads, reader.integer("hidden_size"), None),
    **_biases(),
    layers=reader.integer("n_layer", default=2),
    positions="alibi",
    embed_norm=True,
    norm_eps=reader.number("layer_norm_epsilon", default=1e-5),
    tied=reader.boolean("tie_word_embeddings", default=True),
    activation="gelu_new",
  )


def _fused(name: str, gguf: str | None, layout: Any, **options: Any) -> tuple[TensorKey, ...]:
  """The keys of a fused QKV tensor; llama.cpp's converter always writes it as `stacked_qkv`."""
  return tuple(
    key
    for index, letter in enumerate("qkv")
    for key in linear_keys(
      f"layers/attn/{letter}",
      name,
      gguf,
      hf_part=Part(layout, index),
      gguf_part=Part(stacked_qkv, index),
      **options,
    )
  )


_H = "transformer.h.{layer}"
_GPT2 = (
  *embedding_keys("embed/tokens", "transformer.wte", "token_embd"),
  *embedding_keys("embed/positions", "transformer.wpe", "position_embd"),
  *norm_keys("layers/attn_norm", f"{_H}.ln_1", f"{GGUF_LAYER}.attn_norm"),
  *_fused(f"{_H}.attn.c_attn", f"{GGUF_LAYER}.attn_qkv", stacked_qkv, stored_in_out=True),
  *linear_keys(
    "layers/attn/o", f"{_H}.attn.c_proj", f"{GGUF_LAYER}.attn_output", stored_in_out=True
  ),
  *norm_keys("layers/mlp_norm", f"{_H}.ln_2", f"{GGUF_LAYER}.ffn_norm"),
  *linear_keys("layers/mlp/up", f"{_H}.mlp.c_fc", f"{GGUF_LAYER}.ffn_up", stored_in_out=True),
  *linear_keys("layers/mlp/down", f"{_H}.mlp.c_proj", f"{GGUF_LAYER}.ffn_down", stored_in_out=True),
  *norm_keys("final_norm", "transformer.ln_f", "output_norm"),
  *linear_keys("head", "lm_head", "output"),
)
_N = "gpt_neox.layers.{layer}"
_NEOX = (
  *embedding_keys("embed/tokens", "gpt_neox.embed_in", "token_embd"),
  *norm_keys("layers/attn_norm", f"{_N}.input_layernorm", f"{GGUF_LAYER}.attn_norm"),
  *_fused(f"{_N}.attention.query_key_value", f"{GGUF_LAYER}.attn_qkv", headwise_qkv),
  *linear_keys("layers/attn/o", f"{_N}.attention.dense", f"{GGUF_LAYER}.attn_output"),
  *norm_keys("layers/mlp_norm", f"{_N}.post_attention_layernorm", f"{GGUF_LAYER}.ffn_norm"),
  *linear_keys("layers/mlp/up", f"{_N}.mlp.dense_h_to_4h", f"{GGUF_LAYER}.ffn_up"),
  *linear_keys("layers/mlp/down", f"{_N}.mlp.dense_4h_to_h", f"{GGUF_LAYER}.ffn_down"),
  *norm_keys("final_norm", "gpt_neox.final_layer_norm", "output_norm"),
  *linear_keys("head", "embed_out", "output"),
)
_GPTJ = (
  *embedding_keys("embed/tokens", "transformer.wte"),
  *norm_keys("layers/attn_norm", f"{_H}.ln_1"),
  *(key for n in "qkv" for key in linear_keys(f"layers/attn/{n}", f"{_H}.attn.{n}_proj")),
  *linear_keys("layers/attn/o", f"{_H}.attn.out_proj"),
  *linear_keys("layers/mlp/up", f"{_H}.mlp.fc_in"),
  *linear_keys("layers/mlp/down", f"{_H}.mlp.fc_out"),
  *norm_keys("final_norm", "transformer.ln_f"),
  *linear_keys("head", "lm_head"),
)
_O = "model.decoder.layers.{layer}"
_OPT = (
  *embedding_keys("embed/tokens", "model.decoder.embed_tokens"),
  *embedding_keys("embed/positions", "model.decoder.embed_positions"),
  *norm_keys("layers/attn_norm", f"{_O}.self_attn_layer_norm"),
  *(key for n in "qkv" for key in linear_keys(f"layers/attn/{n}", f"{_O}.self_attn.{n}_proj")),
  *linear_keys("layers/attn/o", f"{_O}.self_attn.out_proj"),
  *norm_keys("layers/mlp_norm", f"{_O}.final_layer_norm"),
  *linear_keys("layers/mlp/up", f"{_O}.fc1"),
  *linear_keys("layers/mlp/down", f"{_O}.fc2"),
  *norm_keys("final_norm", "model.decoder.final_layer_norm"),
  *linear_keys("head", "lm_head"),
)
_BLOOM = (
  *embedding_keys("embed/tokens", "transformer.word_embeddings", "token_embd"),
  *norm_keys("embed_norm", "transformer.word_embeddings_layernorm", "token_embd_norm"),
  *norm_keys("layers/attn_norm", f"{_H}.input_layernorm", f"{GGUF_LAYER}.attn_norm"),
  *_fused(f"{_H}.self_attention.query_key_value", f"{GGUF_LAYER}.attn_qkv", headwise_qkv),
  *linear_keys("layers/attn/o", f"{_H}.self_attention.dense", f"{GGUF_LAYER}.attn_output"),
  *norm_keys("layers/mlp_norm", f"{_H}.post_attention_layernorm", f"{GGUF_LAYER}.ffn_norm"),
  *linear_keys("layers/mlp/up", f"{_H}.mlp.dense_h_to_4h", f"{GGUF_LAYER}.ffn_up"),
  *linear_keys("layers/mlp/down", f"{_H}.mlp.dense_4h_to_h", f"{GGUF_LAYER}.ffn_down"),
  *norm_keys("final_norm", "transformer.ln_f", "output_norm"),
  *linear_keys("head", "lm_head", "output"),
)

# GPT-J and OPT have no GGUF name: llama.cpp's converter writes neither.
FAMILIES = (
  Family(
    "gpt2",
    decoder,
    _GPT2,
    gpt2,
    gguf_name="gpt2",
    read_gguf=gguf_config.gpt2,
    prefix="transformer.",
  ),
  Family(
    "gpt_neox",
    decoder,
    _NEOX,
    gpt_neox,
    gguf_name="gptneox",
    read_gguf=gguf_config.gpt_neox,
    prefix="gpt_neox.",
    derived=gguf_config.ROPE_TENSORS,
  ),
  Family("gptj", decoder, _GPTJ, gptj, prefix="transformer."),
  Family("opt", decoder, _OPT, opt, prefix="model."),
  Family(
    "bloom",
    decoder,
    _BLOOM,
    bloom,
    gguf_name="bloom",
    read_gguf=gguf_config.bloom,
    prefix="transformer.",
  ),
)
