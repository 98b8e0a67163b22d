"""The frozen LM as a user holds it: `load_frozen` and what it gives."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import cache as kv_cache
from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.types import Prompt, Tree
from frozen_jax.decoding.requests import Sampling
from frozen_jax.methods import METHODS
from frozen_jax.models.frozen_encoder import FrozenEncoder, load_encoder
from frozen_jax.models.generation import complete_texts
from frozen_jax.models.settings import ModelSettings
from frozen_jax.models.token_arrays import check_context, checked_ids
from frozen_jax.models.tuned_model import TunedModel


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenLM:
  """A frozen decoder: sizes, weights, tokenizer and what it computes.

  `params` is a pytree of nested dicts, sharded over `mesh`; `tokenizer` is a transformers fast
  tokenizer, or None where the model's folder has none; `fingerprint` (hex) names the stored
  weights, whatever the dtype, mesh or quantisation they are loaded into. `mask` is 1 for real
  tokens; left and right padding give the same results at real positions. `encoder`: a frozen text
  encoder alongside it, for methods that have one. `end_ids`: the tokens that end a generated text.
  `family`: the model type that transformers knows it by.
  """

  name: str
  config: DecoderConfig
  params: Tree
  tokenizer: Any
  fingerprint: str
  mesh: Mesh | None = None
  encoder: FrozenEncoder | None = None
  end_ids: tuple[int, ...] = ()
  family: str = ""

  @property
  def is_on_one_device(self) -> bool:
    """Whether one device holds it, so that batches may leave out padding (`core.types.Batch`)."""
    return self.mesh is None or self.mesh.size == 1

  def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token ids -> input embeddings; UserError for an id that the model does not have."""
    return _embed(self.params, self.config, checked_ids(token_ids, None, self.config.vocab_size))

  def hidden(
    self, inputs_embeds: Float[Array, "B T D"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B T D"]:
    """Input embeddings -> hidden states after the final norm; differentiable in its input.

    Raises UserError for a text longer than the model's context.
    """
    embeds = jnp.asarray(inputs_embeds)
    check_context(embeds.shape, mask, self.config.context)
    return _hidden(self.params, self.config, embeds, _array(mask))

  def logits(
    self, token_ids: Int[Array, "B T"], mask: Int[Array, "B T"] | None = None
  ) -> Float[Array, "B T V"]:
    """Token ids -> float32 logits of the next token at each position.

    Padding (mask 0) may be of any id. Raises UserError for another id that the model does not have,
    and for a text longer than its context.
    """
    ids = checked_ids(token_ids, mask, self.config.vocab_size)
    check_context(ids.shape, mask, self.config.context)
    return _logits(self.params, self.config, ids, _array(mask))

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
    without a tokenizer, for a text longer than the model's context, and for a token that its table
    does not have.
    """
    sampling = Sampling(max_new_tokens, temperature, num_samples, seed)
    encode = lambda given: [Prompt(self.tokenizer(text)["input_ids"]) for text in given]
    return complete_texts(self.zero_shot(), texts, encode, sampling)

  def zero_shot(self, **settings: Any) -> TunedModel:
    """The LM without anything trained, as a tuned model; settings: fields of `TunedModel`."""
    method = METHODS["zero_shot"].build(self, {})
    return TunedModel(self, method, **settings)

  @functools.cached_property
  def embedding_rms(self) -> float:
    """Root mean square of the token embeddings."""
    return float(_embedding_rms(self.params, self.config))

  def stream_rms(self, layer: int) -> float:
    """Root mean square of the residual stream before a layer, counted from 0."""
    return float(_stream_rms(self.params, self.config, layer))

  @property
  def fingerprints(self) -> str:
    """Names everything that is frozen: the LM's weights and, where there is one, the encoder's."""
    return self.fingerprint + ("" if self.encoder is None else f"+{self.encoder.fingerprint}")

  def frozen(self, frozen_inputs: Tree) -> Tree:
    """The `frozen` argument of a method's functions; fixed: small trees that are not trained."""
    encoder = {} if self.encoder is None else {"encoder": self.encoder.params}
    return {"lm": self.params, "frozen_inputs": frozen_inputs, **encoder}


_embed = jax.jit(decoder.embed, static_argnums=1)
_hidden = jax.jit(decoder.hidden, static_argnums=1)
_embedding_rms = jax.jit(decoder.embedding_rms, static_argnums=1)
_stream_rms = jax.jit(decoder.stream_rms, static_argnums=(1, 2))


@jax.jit(static_argnums=1)
def _logits(
  params: Tree, config: DecoderConfig, token_ids: jax.Array, mask: jax.Array | None
) -> jax.Array:
  hidden = decoder.hidden(params, config, decoder.embed(params, config, token_ids), mask)
  return decoder.logits(params, config, hidden)


def _array(mask: Any) -> jax.Array | None:
  return None if mask is None else jnp.asarray(mask)


def load_frozen(
  name: str,
  dtype: str = "float32",
  mesh: Mesh | None = None,
  quantize: str | None = None,
  cache: str | None = None,
  num_layers: int | None = None,
) -> FrozenLM:
  """Loads a frozen LM.

  name: a built-in name ("smollm2-135m-instruct"), a HF folder, a `.gguf` file or
  "hf:owner/name[@revision]". dtype: of the weights, "float32" or "bfloat16". mesh: where they are
  sharded (`frozen_jax.sharding.mesh.make_mesh`); None: the default device. quantize: "int8", "int4"
  or "nf4" keeps the matrices at so many bits. cache: "int8" keeps the keys and values of texts that
  are continued at 8 bits, which saves memory and costs a little precision; None: in `dtype`.
  num_layers: at most so many of the layers, from the first on, to try something out; None: all.
  Raises UserError for whatever is wrong with these, the name or the files.
  """
  kind = cache or ""
  kv_cache.check_cache_kind(kind)
  loaded = load_decoder(name, dtype, mesh, quantize, num_layers=num_layers)
  config = dataclasses.replace(loaded.config, cache=kind)
  return FrozenLM(
    loaded.name,
    config,
    loaded.params,
    loaded.tokenizer,
    loaded.fingerprint,
    mesh,
    end_ids=loaded.end_ids,
    family=loaded.family,
  )


def load_model(settings: ModelSettings, mesh: Mesh) -> FrozenLM:
  """The LM that the `model` section of a config names, with the text encoder that it names."""
  lm = load_frozen(
    settings.name,
    settings.dtype,
    mesh,
    quantize=settings.quantize or None,
    cache=settings.cache or None,
    num_layers=settings.num_layers or None,
  )
  return with_encoder(lm, settings.encoder, settings.dtype)


def with_encoder(lm: FrozenLM, encoder: str, dtype: str) -> FrozenLM:
  """The LM with a text encoder, unless it has one or `encoder` names none."""
  if not encoder or lm.encoder is not None:
    return lm
  return dataclasses.replace(lm, encoder=load_encoder(encoder, dtype, lm.mesh))
