"""Tiny random encoders of transformers, one for each way in which an encoder can be odd."""

import numpy as np
import torch
import transformers

_BERT = {
  "vocab_size": 60,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 32,
}
_T5 = {
  "vocab_size": 60,
  "d_model": 24,
  "d_kv": 10,
  "d_ff": 40,
  "num_layers": 3,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 12,
}
_MODERN = {
  "vocab_size": 60,
  "hidden_size": 24,
  "num_hidden_layers": 4,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "local_attention": 6,
  **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
}
_ROPE = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 50.0}}

LENGTH = 23  # of the texts of `inputs`

# name -> (model, config, settings). Texts of the tests are longer than T5's largest distance and
# ModernBERT's window.
KINDS = {
  "bert": ("BertModel", "BertConfig", _BERT),
  "bert_one_head": (
    "BertModel",
    "BertConfig",
    {**_BERT, "num_attention_heads": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3},
  ),
  "bert_many_types": (
    "BertModel",
    "BertConfig",
    {**_BERT, "num_attention_heads": 12, "type_vocab_size": 5, "hidden_act": "gelu_new"},
  ),
  "roberta": ("RobertaModel", "RobertaConfig", {**_BERT, "type_vocab_size": 1}),
  "roberta_pad_4": (
    "RobertaModel",
    "RobertaConfig",
    {**_BERT, "pad_token_id": 4, "num_attention_heads": 4, "hidden_act": "silu"},
  ),
  "electra": ("ElectraModel", "ElectraConfig", {**_BERT, "embedding_size": 16}),
  "electra_wide": ("ElectraModel", "ElectraConfig", {**_BERT, "embedding_size": 36}),
  "electra_even": ("ElectraModel", "ElectraConfig", {**_BERT, "embedding_size": 24}),
  "t5": ("T5EncoderModel", "T5Config", _T5),
  "t5_gated": (
    "T5EncoderModel",
    "T5Config",
    {**_T5, "feed_forward_proj": "gated-gelu", "num_heads": 5, "d_kv": 4},
  ),
  "t5_silu": (
    "T5EncoderModel",
    "T5Config",
    {**_T5, "feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 32},
  ),
  "t5_few_buckets": (
    "T5EncoderModel",
    "T5Config",
    {**_T5, "relative_attention_num_buckets": 6, "relative_attention_max_distance": 5},
  ),
  "mt5": ("MT5EncoderModel", "MT5Config", _T5),
  "modernbert": ("ModernBertModel", "ModernBertConfig", _MODERN),
  "modernbert_biased": (
    "ModernBertModel",
    "ModernBertConfig",
    {
      **_MODERN,
      **{f"{part}_bias": True for part in ("norm", "attention", "mlp")},
      "layer_types": ["sliding_attention", "full_attention"] * 2,
      "rope_parameters": _ROPE,
      "local_attention": 9,
    },
  ),
  "modernbert_global": (
    "ModernBertModel",
    "ModernBertConfig",
    {**_MODERN, "layer_types": ["full_attention"] * 4, "hidden_activation": "silu"},
  ),
}


def make(name, **changes):
  """A random torch model of the kind `name`, float32, with weights that matter."""
  model, config, settings = KINDS[name]
  return randomise(getattr(transformers, model), getattr(transformers, config), settings | changes)


def randomise(model, config, settings, seed=0):
  torch.manual_seed(seed)
  instance = model(config(**settings, attn_implementation="eager")).eval()
  with torch.no_grad():
    for path, weight in instance.named_parameters():
      scale = "norm" in path.lower() and path.endswith("weight")
      table = path.endswith(("shared.weight", "embed_tokens.weight", "embeddings.weight"))
      weight.normal_(1.0 if scale else 0.0, 0.5 if table else 0.15)
  return instance


def core(model):
  """The part that gives the states: T5's encoder, others as they are."""
  return model.encoder if hasattr(model, "shared") else model


def inputs(config, padding):
  """Tokens, mask and token types (None where the model has one type or none)."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, config.vocab_size, (3, LENGTH))
  lengths = np.array([LENGTH] * 3 if padding == "none" else [LENGTH, LENGTH - 3, LENGTH - 9])
  mask = (np.arange(LENGTH)[None] < lengths[:, None]).astype(np.int32)
  if padding == "left":
    mask = mask[:, ::-1].copy()
  types = rng.integers(0, config.types, tokens.shape) if config.types > 1 else None
  return tokens, mask, types


def run(model, config, x, mask, types):
  """transformers' outputs; positions count from the first real token."""
  more = {}
  if config.positions == "learned":
    positions = np.maximum(mask.cumsum(1) - 1, 0) + config.position_offset
    more["position_ids"] = torch.tensor(positions)
  if types is not None:
    more["token_type_ids"] = torch.tensor(types)
  return core(model)(inputs_embeds=x, attention_mask=torch.tensor(mask), **more)
