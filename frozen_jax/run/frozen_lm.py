"""The frozen LM as a user holds it: `load_frozen` and what it gives."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.types import Tree
from frozen_jax.evaluation.generation import Sampling, generate_texts
from frozen_jax.methods import METHODS


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenLM:
  """A frozen decoder: sizes, weights, tokenizer and what it computes.

  `params` is a pytree of nested dicts, sharded over `mesh`; `tokenizer` is a transformers fast
  tokenizer, or None where the model's folder has none; `fingerprint` (hex) names the stored
  weights, whatever the dtype, mesh or quantisation they are loaded into. `mask` is 1 for real
  tokens; left and right padding give the same results at real positions.
  """

  name: str
  config: DecoderConfig
  params: Tree
  tokenizer: Any
  fingerprint: str
  mesh: Mesh | None = None

  def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token ids -> input embeddings."""
    return _embed(self.params, self.config, jnp.asarray(token_ids))

  def hidden(
    self, inputs_embeds: Float[Array, "B T D"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B T D"]:
    """Input embeddings -> hidden states after the final norm; differentiable in its input."""
    return _hidden(self.params, self.config, jnp.asarray(inputs_embeds), _array(mask))

  def logits(
    self, token_ids: Int[Array, "B T"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B T V"]:
    """Token ids -> float32 logits of the next token at each position."""
    return _logits(self.params, self.config, jnp.asarray(token_ids), _array(mask))

  def generate(
    self,
    texts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
  ) -> list[str] | list[list[str]]:
    """Continues each text; greedy at temperature 0.

    Returns a list of str, or with `num_samples` above 1 a list of lists of str. Raises UserError
    without a tokenizer, or for a text longer than the model's context.
    """
    sampling = Sampling(max_new_tokens, temperature, num_samples, seed)
    method, frozen = METHODS["zero_shot"](self, {}), {"lm": self.params, "fixed": {}}
    return generate_texts(method, {}, frozen, self, texts, self._encode, sampling)

  def _encode(self, text: str) -> list[int]:
    return self.tokenizer(text)["input_ids"]


_embed = jax.jit(decoder.embed, static_argnums=1)
_hidden = jax.jit(decoder.hidden, static_argnums=1)


@jax.jit(static_argnums=1)
def _logits(
  params: Tree, config: DecoderConfig, token_ids: jax.Array, mask: jax.Array | None
) -> jax.Array:
  hidden = decoder.hidden(params, config, decoder.embed(params, config, token_ids), mask)
  return decoder.logits(params, config, hidden)


def _array(mask: Any) -> jax.Array | None:
  return None if mask is None else jnp.asarray(mask)


def load_frozen(
  name: str, dtype: str = "float32", mesh: Mesh | None = None, quantize: str | None = None
) -> FrozenLM:
  """Loads a frozen LM.

  name: a built-in name ("smollm2-135m-instruct"), a HF folder, a `.gguf` file or
  "hf:owner/name[@revision]". dtype: of the weights, "float32" or "bfloat16". mesh: where they are
  sharded (`frozen_jax.sharding.mesh.make_mesh`); None: the default device. Raises UserError for
  whatever is wrong with the name or the files.
  """
  loaded = load_decoder(name, dtype=dtype, mesh=mesh, quantize=quantize)
  return FrozenLM(
    loaded.name, loaded.config, loaded.params, loaded.tokenizer, loaded.fingerprint, mesh
  )
