"""The configs of an experiment's frozen models: from its sizes, or from the headers of files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from frozen_jax.backbones import decoder, encoder, load, load_encoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.models.settings import ModelSettings


@dataclasses.dataclass(frozen=True)
class Models:
  """The frozen models of an experiment; `encoder` is None where it has none."""

  lm: DecoderConfig
  encoder: EncoderConfig | None

  def shapes(self) -> Tree:
    """The frozen models' parameters as a method takes them in `frozen`."""
    frozen = {"lm": decoder.param_shapes(self.lm)}
    if self.encoder is not None:
      frozen["encoder"] = encoder.param_shapes(self.encoder)
    return frozen


def find_models(model: ModelSettings) -> Models:
  """The frozen models of a config's `model` section, from its sizes or from their headers."""
  lm = _from_sizes(DecoderConfig, model.sizes, "sizes") or _from_headers(model.name, decoder)
  lm = load.first_layers(lm, model.num_layers or None)
  text_encoder = _from_sizes(EncoderConfig, model.encoder_sizes, "encoder_sizes")
  if text_encoder is None and model.encoder:
    text_encoder = _from_headers(model.encoder, encoder)
  return Models(lm, text_encoder)


def _from_sizes(config_type: Any, sizes: Mapping[str, Any], key: str) -> Any:
  if not sizes:
    return None
  known = [field.name for field in dataclasses.fields(config_type)]
  if unknown := sizes.keys() - set(known):
    raise UserError(f"model.{key} has {', '.join(sorted(unknown))}; it may have {', '.join(known)}")
  try:
    return config_type(**{name: _hashable(value) for name, value in sizes.items()})
  except (TypeError, ValueError) as error:
    raise UserError(f"model.{key}: {error}") from None


def _hashable(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _from_headers(name: str, network: Any) -> Any:
  path, stored = load.open_headers(name)
  if stored.family.network is not network:
    wanted = "an encoder" if network is encoder else "a decoder"
    raise UserError(f"{name} is no {wanted.split()[1]}; give {wanted}")
  if network is encoder:
    return load_encoder.plan_encoder(path, stored)[0]
  load.plan_decoder(stored)
  return stored.config
