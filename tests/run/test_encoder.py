"""`frozen_jax.load_encoder` with the real MiniLM: its published use, and equality with torch."""

import numpy as np
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.backbones import fetch
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh

NAME = "minilm-l6-v2"
PAIRS = [
  ("A man is eating food.", "A man is eating a piece of bread."),
  ("The girl is carrying a baby.", "A young woman holds an infant in her arms."),
  ("How do I reset my password?", "I forgot my login and want a new one."),
  ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
  ("Water boils at one hundred degrees.", "At what temperature does water start to boil?"),
]


@pytest.fixture(scope="module")
def folder():
  try:
    return fetch.fetch_builtin(NAME, progress=False)
  except UserError as error:
    if not str(error).startswith("cannot download"):
      raise
    pytest.skip(f"the real model is neither cached nor to be had: {error}")


@pytest.fixture(scope="module")
def minilm(folder):
  return frozen_jax.load_encoder(NAME)


def read(encoder, texts, **how):
  found = encoder.tokenizer(texts, padding=True, return_tensors="np", **how)
  return found["input_ids"], found["attention_mask"]


def vectors(encoder, texts, **how):
  tokens, mask = read(encoder, texts, **how)
  return np.asarray(encoder.pool(encoder.hidden(tokens, mask), mask))


def test_related_sentences_score_above_unrelated_ones(minilm):
  first, second = (vectors(minilm, list(texts)) for texts in zip(*PAIRS, strict=True))
  np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
  scores = first @ second.T
  related, unrelated = np.diag(scores), scores[~np.eye(len(PAIRS), dtype=bool)]
  assert related.min() > unrelated.max() + 0.1
  assert (scores.argmax(axis=1) == np.arange(len(PAIRS))).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_equal_transformers(minilm, folder, side):
  torch_model = transformers.AutoModel.from_pretrained(folder).eval()
  texts = ["Peru.", " ".join(text for pair in PAIRS for text in pair)]
  tokens, mask = read(minilm, texts, padding_side=side)
  places = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
  with torch.no_grad():
    theirs = torch_model(
      torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=places
    ).last_hidden_state.numpy()
  real = mask > 0
  ours = np.asarray(minilm.hidden(tokens, mask))
  np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)
  types = np.ones_like(tokens)
  with torch.no_grad():
    theirs = torch_model(
      torch.tensor(tokens),
      attention_mask=torch.tensor(mask),
      position_ids=places,
      token_type_ids=torch.tensor(types),
    ).last_hidden_state.numpy()
  ours = np.asarray(minilm.hidden(tokens, mask, types))
  np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)


def test_what_it_offers(minilm):
  assert minilm.embed([[101, 102]]).shape == (1, 2, 384)
  assert minilm.hidden([[101, 102]]).shape == (1, 2, 384)
  assert (minilm.config.layers, minilm.config.pooling, minilm.config.context) == (6, "mean", 512)
  assert minilm.tokenizer.cls_token_id == 101
  assert len(minilm.fingerprint) == 64 and int(minilm.fingerprint, 16)
  with pytest.raises(UserError, match="513 tokens"):
    minilm.hidden(np.full((1, 513), 101))


def test_other_types_and_a_mesh_name_the_same_weights(minilm):
  texts = [text for pair in PAIRS for text in pair][:8]
  expected = vectors(minilm, texts)
  narrow = frozen_jax.load_encoder(NAME, dtype="bfloat16")
  spread = frozen_jax.load_encoder(NAME, mesh=make_mesh(data=2, fsdp=2, tensor=2))
  assert narrow.fingerprint == spread.fingerprint == minilm.fingerprint
  np.testing.assert_allclose(vectors(spread, texts), expected, atol=1e-5)
  assert (vectors(narrow, texts) * expected).sum(axis=1).min() > 0.999


def test_a_decoder_is_no_encoder(smollm2_file):
  with pytest.raises(UserError, match="encoders are only read from folders"):
    frozen_jax.load_encoder("smollm2-135m-instruct")
  with pytest.raises(UserError, match="load it with load_encoder"):
    frozen_jax.load_frozen(NAME)
