"""What results depend on of the frozen models: weights, computation, the ids of texts."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from frozen_jax.backbones.load import stored_fingerprint
from frozen_jax.backbones.load_encoder import outline_encoder, stored_encoder_fingerprint
from frozen_jax.config.dependencies import changed_fields
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.models.frozen_encoder import FrozenEncoder
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.outline import outline_model
from frozen_jax.models.settings import ModelSettings
from frozen_jax.text.templates import make_template


def identified_model(settings: ModelSettings) -> FrozenLM:
  """The LM without weights or text encoder, with its fingerprint, which reads its files once.

  UserError as `models.outline.outline_model`.
  """
  outline = outline_model(dataclasses.replace(settings, encoder=""))
  return dataclasses.replace(outline, fingerprint=stored_fingerprint(settings.name))


def lm_identity(lm: FrozenLM, templates: Sequence[str]) -> str:
  """A hash (hex) of all of the LM that training and scoring depend on; templates: of questions."""
  values = {
    "weights": lm.fingerprint,
    "end_ids": sorted(lm.end_ids),
    "eos": getattr(lm.tokenizer, "eos_token_id", None),
    "reading": [reading_of(lm, template) for template in templates],
  }
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def encoder_identity(name: str) -> str:
  """`FrozenEncoder.texts_fingerprint` of the encoder of that name, without loading it."""
  of, weights = outline_encoder(name), stored_encoder_fingerprint(name)
  encoder = FrozenEncoder(of.name, of.config, of.params, of.tokenizer, weights, texts=of.texts)
  return encoder.texts_fingerprint


def reading_of(lm: FrozenLM, template: str, reads_encoder: bool = False) -> dict[str, Any]:
  """How the LM, and the text encoder if that is read, compute, and what ids texts become; JSON.

  template: of questions; with "chat" the chat template of the LM's tokenizer counts. The precision
  of the cache is not among it, which counts in generation alone.
  """
  found = {
    "lm_config": changed_fields(dataclasses.replace(lm.config, cache="")),
    "lm_tokenizer": tokenizer_hash(lm.tokenizer),
  }
  if make_template(template).chat:
    found["chat_template"] = chat_template_hash(lm.tokenizer)
  if reads_encoder and lm.encoder is not None:
    found["encoder_config"] = changed_fields(lm.encoder.config)
    found["encoder_tokenizer"] = tokenizer_hash(lm.encoder.tokenizer)
  return found


def chat_template_hash(tokenizer: Any) -> str:
  """A hash (hex) of a tokenizer's chat template, or templates by name; "" without any."""
  template = getattr(tokenizer, "chat_template", None)
  return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else ""
