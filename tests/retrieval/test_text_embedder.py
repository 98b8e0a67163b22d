"""Texts become vectors that do not depend on the other texts of their batch."""

import numpy as np

from frozen_jax.retrieval.text_embedder import text_embedder


class Words:
  """A tokenizer: each word becomes its length, between 100 and 101."""

  def __call__(self, texts, truncation, max_length):
    assert truncation
    ids = [[100, *map(len, text.split()), 101] for text in texts]
    return {"input_ids": [row[:max_length] for row in ids]}


def test_padding_has_no_effect_and_few_shapes_are_compiled():
  shapes = []

  def encode(tokens, mask):
    shapes.append(tokens.shape)
    assert mask.any(axis=1).all()
    return np.stack([(tokens * mask).sum(axis=1), mask.sum(axis=1)], axis=1)

  embed = text_embedder(Words(), encode, max_length=40)
  texts = ["a bb", "", "x " * 90]
  vectors = embed(texts)
  np.testing.assert_array_equal(vectors, [[204, 4], [201, 2], [139, 40]])
  np.testing.assert_array_equal(embed(texts[:1]), vectors[:1])
  assert vectors.dtype == np.float32 and shapes == [(4, 40), (1, 32)]
