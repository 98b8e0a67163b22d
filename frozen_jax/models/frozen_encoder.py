"""The frozen encoder as a user holds it: `load_encoder` and what it gives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import encoder
from frozen_jax.backbones import load_encoder as backbone
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.types import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
  """A frozen encoder: sizes, weights, tokenizer and what it computes.

  `params` is a pytree of nested dicts, sharded over `mesh`; `tokenizer` is a transformers fast
  tokenizer, or None where the model's folder has none; `fingerprint` (hex) names the stored
  weights, whatever the dtype or mesh they are loaded into. `mask` is 1 for real tokens; left and
  right padding give the same results at real positions.
  """

  name: str
  config: EncoderConfig
  params: Tree
  tokenizer: Any
  fingerprint: str
  mesh: Mesh | None = None

  def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """Token ids -> word embeddings alone."""
    return _embed(self.params, self.config, jnp.asarray(token_ids))

  def hidden(
    self,
    token_ids: Int[Array, "B T"],
    mask: Int[Array, "B T"] | None = None,
    types: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T D"]:
    """Token ids -> the states of the last layer; `types` are the token types (None: all 0).

    Raises UserError for a text longer than the model's table of positions.
    """
    return _hidden(self.params, self.config, jnp.asarray(token_ids), _array(mask), _array(types))

  def pool(
    self, states: Float[Array, "B T D"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B D"]:
    """The states of `hidden` -> one float32 vector a text, as the model's folder says.

    Raises UserError where it does not say.
    """
    return _pool(self.params, self.config, jnp.asarray(states), _array(mask))


_embed = jax.jit(encoder.embed, static_argnums=1)
_pool = jax.jit(encoder.pool, static_argnums=1)


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
    loaded.name, loaded.config, loaded.params, loaded.tokenizer, loaded.fingerprint, mesh
  )
