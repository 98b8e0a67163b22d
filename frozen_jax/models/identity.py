"""What results depend on of the frozen models, besides their stored weights: JSON, to be recorded.

How they compute, and which ids a text becomes. Weights have fingerprints.
"""

import dataclasses
import hashlib
import json
from typing import Any

from frozen_jax.config.dependencies import changed_fields
from frozen_jax.data.feature_store import tokenizer_hash
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.text.templates import make_template


def reading_of(lm: FrozenLM, template: str, reads_encoder: bool = False) -> dict[str, Any]:
  """How the LM, and the text encoder if that is read, compute, and how texts become their ids.

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
