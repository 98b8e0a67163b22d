"""The encoders: BERT, RoBERTa, ELECTRA; T5 and mT5; ModernBERT.

BERT, RoBERTa and ELECTRA have norms after the residual sums (post-norm), learned position
embeddings and biases everywhere; RoBERTa's table of positions starts after the row of the padding,
ELECTRA's embeddings may be narrower than its layers. T5 is pre-norm without biases; its relative
position biases are in buckets of distances, with one table for all layers; of an encoder-decoder
only the encoder is read. ModernBERT is pre-norm with rotary positions and fused matrices, and most
of its layers have sliding-window attention.
"""

from typing import Any

from frozen_jax.backbones import encoder
from frozen_jax.backbones.activations import ACTIVATIONS
from frozen_jax.backbones.config import Rope
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.rope_config import scaled
from frozen_jax.backbones.families.shared import read_hf_common, stacked_mlp
from frozen_jax.backbones.families.table import (
  Family,
  Part,
  TensorKey,
  TensorSource,
  embedding_keys,
  linear_keys,
  norm_keys,
)


def _head_dim(reader: ConfigReader, width: int, heads: int) -> int:
  if heads < 1 or width % heads:
    reader.reject("num_attention_heads")
    return width
  return width // heads


def _bert(reader: ConfigReader) -> dict[str, Any]:
  """The fields that BERT, RoBERTa and ELECTRA share."""
  read_hf_common(reader, decoder=False)
  reader.expect(position_embedding_type="absolute", is_encoder_decoder=False)
  width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
  return {
    "vocab_size": reader.integer("vocab_size"),
    "width": width,
    "layers": reader.integer("num_hidden_layers"),
    "heads": heads,
    "head_dim": _head_dim(reader, width, heads),
    "mlp_width": reader.integer("intermediate_size"),
    "context": reader.integer("max_position_embeddings", default=512),
    "types": reader.integer("type_vocab_size", default=2),
    "norm_eps": reader.number("layer_norm_eps", default=1e-12),
    "activation": reader.string("hidden_act", default="gelu", choices=ACTIVATIONS),
  }


def bert(reader: ConfigReader) -> EncoderConfig:
  return EncoderConfig(**_bert(reader))


def roberta(reader: ConfigReader) -> EncoderConfig:
  fields = _bert(reader)
  offset = (
    reader.integer("pad_token_id", default=1) + 1
  )  # the rows up to the padding's are not used
  return EncoderConfig(**fields | {"context": fields["context"] - offset}, position_offset=offset)


def electra(reader: ConfigReader) -> EncoderConfig:
  return EncoderConfig(**_bert(reader), embed_width=reader.integer("embedding_size", default=128))


def _t5(reader: ConfigReader, mlp: str) -> EncoderConfig:
  """`mlp`: the kind of MLP where the file has no key for it."""
  read_hf_common(reader, decoder=False)
  reader.rename(hidden_size="d_model", num_hidden_layers="num_layers")
  reader.rename(num_attention_heads="num_heads", head_dim="d_kv")
  kind = reader.string("feed_forward_proj", default=mlp)
  named = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
  if named not in ACTIVATIONS and "dense_act_fn" not in reader:
    reader.reject("feed_forward_proj")
    named = "relu"
  activation = reader.string("dense_act_fn", default=named, choices=ACTIVATIONS)  # it counts
  gated = reader.boolean("is_gated_act", default=kind.startswith("gated-"))
  return EncoderConfig(
    vocab_size=reader.integer("vocab_size"),
    width=reader.integer("d_model"),
    layers=reader.integer("num_layers"),
    heads=reader.integer("num_heads"),
    head_dim=reader.integer("d_kv"),
    mlp_width=reader.integer("d_ff"),
    context=reader.integer("n_positions", default=512),
    types=0,
    embed_norm=False,
    norm="rms",
    norm_eps=reader.number("layer_norm_epsilon", default=1e-6),
    norm_bias=False,
    norm_first=True,
    positions="buckets",
    buckets=reader.integer("relative_attention_num_buckets", default=32),
    bucket_distance=reader.integer("relative_attention_max_distance", default=128),
    scaled=False,
    attn_bias=False,
    activation=activation,
    gated=gated,
    mlp_bias=False,
  )


def t5(reader: ConfigReader) -> EncoderConfig:
  return _t5(reader, "relu")


def mt5(reader: ConfigReader) -> EncoderConfig:
  return _t5(reader, "gated-gelu")


def modernbert(reader: ConfigReader) -> EncoderConfig:
  read_hf_common(reader, decoder=False)
  reader.expect(is_encoder_decoder=False, rope_scaling=({},))
  width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
  layers = reader.integer("num_hidden_layers")
  window = reader.integer("local_attention", default=128) // 2
  reader.expect(sliding_window=window, head_dim=width // max(heads, 1))
  context = reader.integer("max_position_embeddings", default=8192)
  attn_bias, mlp_bias = (
    reader.boolean(f"{part}_bias", default=False) for part in ("attention", "mlp")
  )
  return EncoderConfig(
    vocab_size=reader.integer("vocab_size"),
    width=width,
    layers=layers,
    heads=heads,
    head_dim=_head_dim(reader, width, heads),
    mlp_width=reader.integer("intermediate_size"),
    context=context,
    types=0,
    norm_eps=reader.number("norm_eps", default=1e-5),
    norm_bias=reader.boolean("norm_bias", default=False),
    norm_first=True,
    skip_first_norm=True,
    positions="rotary",
    rope=_rope(reader, "full_attention", "global_rope_theta", 160_000.0, context),
    local_rope=_rope(reader, "sliding_attention", "local_rope_theta", 10_000.0, context),
    local=_local(reader, layers),
    window=window,
    attn_bias=attn_bias,
    activation=reader.string("hidden_activation", default="gelu", choices=ACTIVATIONS),
    gated=True,
    mlp_bias=mlp_bias,
  )


def _rope(reader: ConfigReader, kind: str, older: str, usual: float, context: int) -> Rope:
  """The rotary positions of one kind of layer; older files only have their base, as `older`."""
  theta = reader.number(older, default=usual)
  nested = reader.nested("rope_parameters").nested(kind)
  return scaled(nested, nested.number("rope_theta", default=theta), context)


def _local(reader: ConfigReader, layers: int) -> tuple[bool, ...]:
  """Whether each layer has local attention: as listed; in older files, all but every n-th."""
  every = max(reader.integer("global_attn_every_n_layers", default=3), 1)
  usual = ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
  stated = reader.sequence("layer_types", default=usual)
  if set(stated) - {"sliding_attention", "full_attention"}:
    reader.reject("layer_types")
  return tuple(kind == "sliding_attention" for kind in stated)


def _bert_keys(prefix: str) -> tuple[TensorKey, ...]:
  embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{layer}}"
  return (
    *embedding_keys("embed/tokens", f"{embeddings}.word_embeddings"),
    *embedding_keys("embed/positions", f"{embeddings}.position_embeddings"),
    *embedding_keys("embed/types", f"{embeddings}.token_type_embeddings"),
    *norm_keys("embed_norm", f"{embeddings}.LayerNorm"),
    *linear_keys("embed_project", f"{prefix}embeddings_project"),
    *linear_keys("layers/attn/q", f"{layer}.attention.self.query"),
    *linear_keys("layers/attn/k", f"{layer}.attention.self.key"),
    *linear_keys("layers/attn/v", f"{layer}.attention.self.value"),
    *linear_keys("layers/attn/o", f"{layer}.attention.output.dense"),
    *norm_keys("layers/attn_norm", f"{layer}.attention.output.LayerNorm"),
    *linear_keys("layers/mlp/up", f"{layer}.intermediate.dense"),
    *linear_keys("layers/mlp/down", f"{layer}.output.dense"),
    *norm_keys("layers/mlp_norm", f"{layer}.output.LayerNorm"),
    # No parameter of the encoder: a re-ranker's head starts from it (export.cross_encoder).
    *linear_keys("pooler", f"{prefix}pooler.dense"),
  )


def _bert_family(name: str, read_hf: Any, heads: str, tied_head: str) -> Family:
  """`heads`: a regular expression for the names of other tasks' heads."""
  prefix = f"{name}."
  return Family(
    name,
    encoder,
    _bert_keys(prefix),
    read_hf,
    prefix=prefix,
    derived=(rf"({name}\.)?pooler\.dense\.(weight|bias)", rf"({heads})\..*"),
    aliases=((r"(.*LayerNorm)\.gamma", r"\1.weight"), (r"(.*LayerNorm)\.beta", r"\1.bias")),
    tied_heads=(tied_head,),
  )


def _t5_keys() -> tuple[TensorKey, ...]:
  attention, mlp = (f"encoder.block.{{layer}}.layer.{index}" for index in (0, 1))
  first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
  return (
    *embedding_keys("embed/tokens", "shared"),
    *embedding_keys("buckets/table", first),
    *(
      key
      for name in "qkvo"
      for key in linear_keys(f"layers/attn/{name}", f"{attention}.SelfAttention.{name}")
    ),
    *norm_keys("layers/attn_norm", f"{attention}.layer_norm"),
    *norm_keys("layers/mlp_norm", f"{mlp}.layer_norm"),
    *linear_keys("layers/mlp/gate", f"{mlp}.DenseReluDense.wi_0"),
    *linear_keys("layers/mlp/up", f"{mlp}.DenseReluDense.wi_1"),
    *linear_keys("layers/mlp/down", f"{mlp}.DenseReluDense.wo"),
    *norm_keys("final_norm", "encoder.final_layer_norm"),
  )


def _t5_family(name: str, read_hf: Any) -> Family:
  return Family(
    name,
    encoder,
    _t5_keys(),
    read_hf,
    derived=(r"decoder\..*", r"lm_head\.weight", r"encoder\.embed_tokens\.weight"),
    aliases=(
      (r"(encoder|decoder)\.embed_tokens\.weight", "shared.weight"),  # one table for both
      (r"(encoder\..*DenseReluDense)\.wi\.weight", r"\1.wi_1.weight"),  # an ungated MLP
    ),
    tied_heads=("lm_head.weight",),
  )


def _stacked_qkv(config: EncoderConfig) -> tuple[int, tuple[int, ...]]:
  """The layout: queries of all heads, then keys, then values."""
  return 1, (config.heads * config.head_dim,) * 3


def _modernbert_keys() -> tuple[TensorKey, ...]:
  layer = "model.layers.{layer}"
  keys: tuple[TensorKey, ...] = (
    *embedding_keys("embed/tokens", "model.embeddings.tok_embeddings"),
    *norm_keys("embed_norm", "model.embeddings.norm"),
    TensorKey("later/attn_norm/scale", TensorSource(f"{layer}.attn_norm.weight", first=1)),
    TensorKey("later/attn_norm/bias", TensorSource(f"{layer}.attn_norm.bias", first=1)),
    *linear_keys("layers/attn/o", f"{layer}.attn.Wo"),
    *norm_keys("layers/mlp_norm", f"{layer}.mlp_norm"),
    *linear_keys("layers/mlp/down", f"{layer}.mlp.Wo"),
    *norm_keys("final_norm", "model.final_norm"),
  )
  for index, name in enumerate("qkv"):
    keys += linear_keys(
      f"layers/attn/{name}", f"{layer}.attn.Wqkv", hf_part=Part(_stacked_qkv, index)
    )
  for index, name in enumerate(("gate", "up")):
    keys += linear_keys(f"layers/mlp/{name}", f"{layer}.mlp.Wi", hf_part=Part(stacked_mlp, index))
  return keys


FAMILIES = (
  _bert_family(
    "bert",
    bert,
    heads="cls|classifier|qa_outputs",
    tied_head="cls.predictions.decoder.weight",
  ),
  _bert_family(
    "roberta",
    roberta,
    heads="lm_head|classifier|qa_outputs",
    tied_head="lm_head.decoder.weight",
  ),
  _bert_family(
    "electra",
    electra,
    heads="discriminator_predictions|generator_predictions|generator_lm_head|classifier|qa_outputs",
    tied_head="generator_lm_head.weight",
  ),
  _t5_family("t5", t5),
  _t5_family("mt5", mt5),
  Family(
    "modernbert",
    encoder,
    _modernbert_keys(),
    modernbert,
    prefix="model.",
    derived=(r"(head|decoder|classifier|qa_outputs)\..*",),
    tied_heads=("decoder.weight",),
  ),
)
