"""The configs of an experiment's frozen models: from its sizes, or from the headers of files."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from frozen_jax.backbones import decoder, encoder, load, load_encoder, quantized_reading
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.quantized_reading import loaded_shapes
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Tree
from frozen_jax.models.settings import ModelSettings


@dataclasses.dataclass(frozen=True)
class Models:
  """The frozen models of an experiment; `encoder` is None where it has none.

  blocks: path -> GGUF type, of the LM's matrices that a file has in blocks which are used unchanged
  (`quantized_reading.block_types`).
  """

  lm: DecoderConfig
  encoder: EncoderConfig | None
  blocks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def without_encoder(self) -> "Models":
    """The LM alone."""
    return dataclasses.replace(self, encoder=None)

  def shapes(self) -> Tree:
    """The frozen models' parameters as a method takes them in `frozen`."""
    frozen = {"lm": decoder.param_shapes(self.lm)}
    if self.encoder is not None:
      frozen["encoder"] = encoder.param_shapes(self.encoder)
    return frozen

  def loaded_shapes(self, model: ModelSettings) -> Tree:
    """`shapes` in the form in which the models are loaded: their dtype, the LM quantised."""
    dtype, kind = jnp.dtype(model.dtype), model.quantize or None
    shapes = self.shapes()
    loaded = {"lm": loaded_shapes(shapes.pop("lm"), kind, dtype, self.blocks)}
    return loaded | {name: loaded_shapes(tree, None, dtype) for name, tree in shapes.items()}


def find_models(model: ModelSettings) -> Models:
  """The frozen models of a config's `model` section, from its sizes or from their headers."""
  lm, blocks = _find_lm(model)
  text_encoder = _from_sizes(EncoderConfig, model.encoder_sizes, "encoder_sizes")
  if text_encoder is None and model.encoder:
    text_encoder, _ = load_encoder.plan_encoder(*_open_headers(model.encoder, encoder))
  return Models(dataclasses.replace(lm, cache=model.cache), text_encoder, blocks)


def _find_lm(model: ModelSettings) -> tuple[DecoderConfig, dict[str, str]]:
  """The LM's config, and the blocks of its file that are used unchanged."""
  config, num_layers = _from_sizes(DecoderConfig, model.sizes, "sizes"), model.num_layers or None
  if config is not None:
    return load.first_layers(config, num_layers), {}
  _, stored = _open_headers(model.name, decoder)
  config = load.first_layers(stored.config, num_layers)
  leaves = load.plan_decoder(stored, config)
  if not model.quantize:
    return config, {}
  return config, quantized_reading.block_types(leaves, stored, model.quantize)


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


def _open_headers(name: str, network: Any) -> tuple[pathlib.Path, Any]:
  """A model's path, and its headers; UserError if it is not one of this network."""
  path, stored = load.open_headers(name)
  if stored.family.network is not network:
    wanted = "an encoder" if network is encoder else "a decoder"
    raise UserError(f"{name} is no {wanted.split()[1]}; give {wanted}")
  return path, stored
