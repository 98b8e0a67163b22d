"""The frozen encoder as a user holds it: `load_encoder` and what it gives."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import encoder
from frozen_jax.backbones import load_encoder as backbone
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.sentence_config import TextSettings
from frozen_jax.config.dependencies import changed_fields
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.models.token_arrays import check_context, checked_ids
from frozen_jax.retrieval.dense_index import Embed, embed_sorted
from frozen_jax.retrieval.text_embedder import ShardBatch, text_embedder
from frozen_jax.sharding.batch import with_sharding_constraint
from frozen_jax.sharding.rules import replicated


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
  """A frozen encoder: sizes, weights, tokenizer and what it computes.

  `params` is a pytree of nested dicts, sharded over `mesh`; `tokenizer` is a transformers fast
  tokenizer, or None where the model's folder has none; `fingerprint` (hex) names the stored
  weights, whatever the dtype or mesh they are loaded into. `texts`: how texts are put to it, as a
  folder of sentence-transformers says. `mask` is 1 for real tokens; left and right padding give the
  same results at real positions.
  """

  name: str
  config: EncoderConfig
  params: Tree
  tokenizer: Any
  fingerprint: str
  mesh: Mesh | None = None
  texts: TextSettings = TextSettings()

  def encode_query(self, texts: Sequence[str]) -> Float[np.ndarray, "N width"]:
    """One float32 vector a query, as `encode_query` of sentence-transformers.

    Raises UserError without a tokenizer.
    """
    return self._encode(texts, self.texts.query_prompt)

  def encode_document(self, texts: Sequence[str]) -> Float[np.ndarray, "N width"]:
    """One float32 vector a document; as `encode_query` otherwise."""
    return self._encode(texts, self.texts.document_prompt)

  def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N width"]:
    """One float32 vector a text, with the folder's default prompt; as `encode_query` otherwise."""
    return self._encode(texts, self.texts.default_prompt)

  def _encode(self, texts: Sequence[str], prompt: str) -> np.ndarray:
    if isinstance(texts, str):
      raise UserError("give a list of texts; put the one text into a list")
    if not texts:
      return np.zeros((0, self.config.vector_width or self.config.width), np.float32)
    return embed_sorted(texts, self.text_embedder(prompt), _TEXTS_AT_ONCE)

  def text_embedder(
    self, prompt: str = "", max_length: int = 0, shard_batch: ShardBatch = dict
  ) -> Embed:
    """A function of up to a batch of texts, each after the prompt -> float32 [N, width].

    max_length: tokens to which texts are truncated, if the model's own limit is not lower (0: to
    that limit). shard_batch: puts a batch on the mesh. Raises UserError without a tokenizer.
    """
    if self.tokenizer is None:
      raise UserError(f"{self.name} has no tokenizer; add tokenizer.json to its folder")
    length = min(max_length or self.max_length, self.max_length)
    skipped = 0 if self.texts.pool_prompt or not prompt else self._prompt_tokens(prompt, length)

    def encode(tokens: jax.Array, mask: jax.Array) -> jax.Array:
      pooled = mask if not skipped else mask * (jnp.arange(mask.shape[1]) >= skipped)
      return self.pool(self.hidden(tokens, mask), pooled)

    return text_embedder(self.tokenizer, encode, length, shard_batch, prompt)

  @property
  def max_length(self) -> int:
    """The most tokens of a text: of the folder, else of its tokenizer; the context at most."""
    config = self.config
    most = config.max_tokens if config.positions == "buckets" else config.context
    stated = self.texts.max_length or getattr(self.tokenizer, "model_max_length", most)
    return min(stated, most)

  @functools.cached_property
  def texts_fingerprint(self) -> str:
    """Names all that a text's vector depends on, for what is stored of texts; hex digits.

    Besides the weights: sizes, pooling and normalisation, the tokenizer, prompts and the other
    `texts`. Not the dtype and devices in use, nor a prompt that the caller gives.
    """
    values = {
      "config": changed_fields(self.config),
      "tokenizer": tokenizer_hash(self.tokenizer),
      "texts": changed_fields(self.texts),
    }
    text = json.dumps(values, sort_keys=True)
    return f"{self.fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

  def _prompt_tokens(self, prompt: str, max_length: int) -> int:
    """How many tokens the prompt is, without a special one at its end."""
    ids = self.tokenizer([prompt], truncation=True, max_length=max_length)["input_ids"][0]
    return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

  def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T Ee"]:
    """Token ids -> word embeddings alone; UserError for an id that the model does not have."""
    return _embed(self.params, self.config, checked_ids(token_ids, None, self.config.vocab_size))

  def hidden(
    self,
    token_ids: Int[Array, "B T"],
    mask: Int[Array, "B T"] | None = None,
    types: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T De"]:
    """Token ids -> the states of the last layer; `types` are the token types (None: all 0).

    Padding (mask 0) may be of any id and type. Raises UserError for another id or type that the
    model does not have, and for a text longer than its table of positions.
    """
    ids = checked_ids(token_ids, mask, self.config.vocab_size)
    check_context(ids.shape, None, self.config.max_tokens)
    if types is not None and self.config.types:
      types = checked_ids(types, mask, self.config.types, "the token types, row")
    return _hidden(self.params, self.config, ids, _array(mask), _array(types))

  def pool(
    self, states: Float[Array, "B T De"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B width"]:
    """The states of `hidden` -> one float32 vector a text, as the model's folder says.

    Every host has all of them.
    """
    sharding = None if self.mesh is None else replicated(self.mesh)
    return _pool(self.config, jnp.asarray(states), _array(mask), sharding)


_TEXTS_AT_ONCE = 64

_embed = jax.jit(encoder.embed, static_argnums=1)


@jax.jit(static_argnums=(0, 3))
def _pool(
  config: EncoderConfig,
  states: jax.Array,
  mask: jax.Array | None,
  out_sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  return with_sharding_constraint(encoder.pool(config, states, mask), out_sharding)


@jax.jit(static_argnums=1)
def _hidden(
  params: Tree,
  config: EncoderConfig,
  token_ids: jax.Array,
  mask: jax.Array | None,
  types: jax.Array | None,
) -> jax.Array:
  return encoder.hidden(params, config, encoder.embed(params, config, token_ids), mask, types)


def _array(values: Any) -> jax.Array | None:
  return None if values is None else jnp.asarray(values)


def load_encoder(name: str, dtype: str = "float32", mesh: Mesh | None = None) -> FrozenEncoder:
  """Loads a frozen encoder.

  name: a built-in name ("minilm-l6-v2"), a HF folder or "hf:owner/name[@revision]" of T5 (also of a
  whole encoder-decoder), BERT, RoBERTa, ELECTRA or ModernBERT. dtype: of the weights, "float32" or
  "bfloat16". mesh: where they are sharded (`frozen_jax.sharding.mesh.make_mesh`); None: the default
  device. Raises UserError for whatever is wrong with the name or the files.
  """
  loaded = backbone.load_encoder(name, dtype=dtype, mesh=mesh)
  return FrozenEncoder(
    loaded.name,
    loaded.config,
    loaded.params,
    loaded.tokenizer,
    loaded.fingerprint,
    mesh,
    loaded.texts,
  )
