"""From an encoder's function of token ids to a function of texts, as dense indexes need it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from frozen_jax.retrieval.dense_index import Embed
from frozen_jax.sharding.batch import ShardBatch
from frozen_jax.text.padding import pad_sequences, power_of_two

_LENGTH_MULTIPLE = 32  # batches are padded to a multiple of it, so that few shapes are compiled


def text_embedder(
  tokenizer: Any,
  encode: Callable[[jax.Array, jax.Array], jax.Array],
  max_length: int,
  shard_batch: ShardBatch = dict,
  prompt: str = "",
) -> Embed:
  """A function: texts -> float32 [N, width].

  Args:
    tokenizer: a transformers fast tokenizer; its special tokens are added to each text.
    encode: token ids and mask, int32 [B, T] each, padded on the right -> vectors [B, width].
    max_length: texts are truncated to this many tokens.
    prompt: put before each text.
    shard_batch: puts a batch on the mesh (`sharding.batch.shard_batch`).
  """

  def embed(texts: Sequence[str]) -> np.ndarray:
    ids = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_length)[
      "input_ids"
    ]
    longest = max(map(len, ids))
    width = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, max_length)
    rows = power_of_two(len(ids))
    # A row that is all padding has no mean: surplus rows repeat the first text.
    tokens, mask = pad_sequences([*ids, *ids[:1] * (rows - len(ids))], width)
    batch = shard_batch({"tokens": tokens, "mask": mask})
    return np.asarray(encode(batch["tokens"], batch["mask"]), np.float32)[: len(ids)]

  return embed
