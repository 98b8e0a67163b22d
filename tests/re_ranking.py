"""A tiny world of questions and passages, and tiny encoders with tokenizers for it."""

import json

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from frozen_jax.data.mining import Group
from frozen_jax.data.pair_encoder import PairEncoder

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = [*SPECIAL, "what", "colour", "has", "the", "is", *(f"w{i}" for i in range(40))]

_SIZES = {
  "vocab_size": 64,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "pad_token_id": 0,
}

# Kind -> what of transformers it is, its settings, and the token types of question and passage.
KINDS = {
  "bert": ("Bert", {"max_position_embeddings": 48}, (0, 1)),
  "roberta": ("Roberta", {"max_position_embeddings": 49, "type_vocab_size": 1}, (0, 0)),
  "electra": ("Electra", {"max_position_embeddings": 48, "embedding_size": 16}, (0, 1)),
  "modernbert": ("ModernBert", {"max_position_embeddings": 48, "classifier_bias": True}, (0, 0)),
  "modernbert_mean": (
    "ModernBert",
    {"max_position_embeddings": 48, "classifier_pooling": "mean", "norm_bias": True},
    (0, 0),
  ),
}


def tokenizer(types=(0, 1)):
  """Whole words; `<s> question </s> passage </s>`, with these token types."""
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  first, second = types
  backend.post_processor = TemplateProcessing(
    single="<s> $A </s>",
    pair=f"<s>:{first} $A:{first} </s>:{first} $B:{second} </s>:{second}",
    special_tokens=[("<s>", 1), ("</s>", 2)],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token="<pad>",
    cls_token="<s>",
    sep_token="</s>",
    unk_token="<unk>",
  )


def classifier(kind, **changes):
  """A random sequence classifier of transformers with weights that matter, one label."""
  name, settings, _ = KINDS[kind]
  config = getattr(transformers, f"{name}Config")
  torch.manual_seed(0)
  model = getattr(transformers, f"{name}ForSequenceClassification")(
    config(**(_SIZES | settings | {"num_labels": 1} | changes), attn_implementation="eager")
  ).eval()
  with torch.no_grad():
    for path, weight in model.named_parameters():
      scale = "norm" in path.lower() and path.endswith("weight")
      weight.normal_(1.0 if scale else 0.0, 0.2)
  return model


def save(kind, folder, **changes):
  """A folder as transformers and its tokenizer write it; the torch model."""
  model = classifier(kind, **changes)
  model.save_pretrained(folder)
  tokenizer(KINDS[kind][2]).save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  settings = json.loads(path.read_text())
  if kind in ("bert", "electra"):
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
  path.write_text(json.dumps(settings | {"model_max_length": 40}))
  return model


def pair_encoder(words=None, types=2, lengths=(16, 24, 40)):
  return PairEncoder(words or tokenizer(), types, 48, lengths)


def pairs(count=12, seed=0):
  """Questions and passages of mixed lengths, a passage never shorter than its question."""
  draw = np.random.default_rng(seed)
  text = lambda size: " ".join(f"w{i}" for i in draw.integers(0, 40, size))
  return [(text(draw.integers(1, 5)), text(draw.integers(5, 20))) for _ in range(count)]


def unpacked(batch):
  """The texts of each question of a batch, ids; None where there is none."""
  questions = []
  units = zip(batch["tokens"], batch["mask"], batch["text_index"], strict=True)
  for tokens, masks, text_index in units:
    texts = [ids[mask > 0] for ids, row in zip(tokens, masks, strict=True) for mask in row]
    questions += [[texts[i] if i >= 0 else None for i in passages] for passages in text_index]
  return questions


PASSAGES = [f"the colour w{i} is w{(i * 7 + 3) % 40}" for i in range(40)]


def groups():
  """The passage that names a thing has its colour; the others are negatives."""
  return [
    Group(f"what has w{i}", (i,), tuple((i + step) % 40 for step in range(1, 6))) for i in range(40)
  ]
