"""The frozen models of a config before their weights are read: sizes, tokenizers, shapes.

What does not depend on a weight is checked on them: whether prompts, texts and answers fit the
context, whether a method can have its settings with this model.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from frozen_jax.backbones.load import outline_decoder
from frozen_jax.backbones.load_encoder import outline_encoder
from frozen_jax.backbones.quantized_reading import loaded_shapes
from frozen_jax.models.frozen_encoder import FrozenEncoder
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.settings import ModelSettings


@dataclasses.dataclass(frozen=True, eq=False)
class ModelOutline(FrozenLM):
  """A frozen LM without weights: methods are built on it, and nothing is computed.

  `params` are the shapes of the weights, `fingerprint` is empty; so it is of the encoder.
  """

  embedding_rms: ClassVar[float] = 1.0  # type: ignore[misc]  # of no weights; a scale of outputs

  def stream_rms(self, layer: int) -> float:
    """As `embedding_rms`."""
    del layer
    return 1.0


def outline_model(settings: ModelSettings) -> ModelOutline:
  """What `models.frozen_lm.load_model` loads, without weights; UserError as that.

  Of models on the hub config, tokenizer and headers are downloaded; a built-in model as a whole.
  """
  found = outline_decoder(settings.name, settings.num_layers or None)
  encoder = None
  if settings.encoder:
    of = outline_encoder(settings.encoder)
    encoder = FrozenEncoder(of.name, of.config, of.params, of.tokenizer, "", texts=of.texts)
  return ModelOutline(
    found.name,
    dataclasses.replace(found.config, cache=settings.cache),
    loaded_shapes(found.params, settings.quantize or None, jnp.dtype(settings.dtype)),
    found.tokenizer,
    "",
    encoder=encoder,
    end_ids=found.end_ids,
    family=found.family,
  )
