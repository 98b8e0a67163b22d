"""Rotary positions, in the various spellings that config.json files have for them."""

import math

from frozen_jax.backbones import rope
from frozen_jax.backbones.config import Rope
from frozen_jax.backbones.families.config_reader import ConfigReader

_ALIASES = {"su": "longrope", "": "default"}
_KNOWN = (*rope.ROPE_TYPES, *_ALIASES)


def read_rope(
  reader: ConfigReader,
  context: int,
  theta: float = 10_000.0,
  theta_key: str = "rope_theta",
  fraction_key: str = "",
  fraction: float = 1.0,
) -> tuple[Rope, float]:
  """The rotary positions and the fraction of a head that they rotate.

  Newer files have all of it in `rope_parameters`, older ones in `rope_scaling` and in keys of their
  own. context: the model's maximal length. theta, fraction: defaults. theta_key, fraction_key: the
  keys of older files. Without a fraction_key the family rotates whole heads: its modeling code in
  transformers does not read `partial_rotary_factor`.
  """
  theta = reader.number(theta_key, default=theta)
  if fraction_key:
    fraction = reader.number(fraction_key, default=fraction)
  original = reader.integer("original_max_position_embeddings", default=None)
  old, new = reader.nested("rope_scaling"), reader.nested("rope_parameters")
  nested = new if "rope_parameters" in reader else old
  theta = nested.number("rope_theta", default=theta)
  if fraction_key:
    fraction = nested.number("partial_rotary_factor", default=fraction)
  config = scaled(nested, theta, context, original)
  if not fraction_key and config.kind != "default":  # transformers fails: its tables are too narrow
    reader.expect(partial_rotary_factor=1)
    nested.expect(partial_rotary_factor=1)
  if "rope_parameters" in reader and scaled(old, theta, context, original) != config:
    reader.reject("rope_scaling")  # a file may have both spellings
  return config, fraction


def scaled(reader: ConfigReader, theta: float, context: int, original: int | None = None) -> Rope:
  """The keys within `rope_parameters` or `rope_scaling` -> the scaling of rotary positions."""
  kind = reader.string("rope_type", "type", default="default", choices=_KNOWN)
  kind = _ALIASES.get(kind, kind)
  if kind not in rope.ROPE_TYPES:
    reader.ignore("*")  # only the unknown kind is reported, not its parameters
    return Rope(theta)
  if kind == "default":
    return Rope(theta)
  if kind == "linear":
    return Rope(theta, kind, reader.number("factor"))
  if kind == "dynamic":
    return Rope(theta, kind, reader.number("factor"), original_context=context)
  original = reader.integer("original_max_position_embeddings", default=original or context)
  if kind == "llama3":
    low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
    return Rope(theta, kind, reader.number("factor"), original, low, high)
  factor = reader.number("factor", default=context / original)
  if kind == "yarn":
    return Rope(
      theta,
      kind,
      factor,
      original,
      beta_slow=reader.number("beta_slow", default=1.0),
      beta_fast=reader.number("beta_fast", default=32.0),
      truncate=reader.boolean("truncate", default=True),
      attention_factor=_yarn_magnitude(reader, factor),
    )
  magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  return Rope(
    theta,
    kind,
    factor,
    original,
    short_factor=reader.numbers("short_factor"),
    long_factor=reader.numbers("long_factor"),
    attention_factor=reader.number("attention_factor", default=magnitude),
  )


def _yarn_magnitude(reader: ConfigReader, factor: float) -> float:
  """The factor of cos and sin: by the paper (equation 22), unless the file has another."""

  def from_paper(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  numerator = reader.number("mscale", default=0.0)
  denominator = reader.number("mscale_all_dim", default=0.0)
  both = numerator and denominator
  magnitude = from_paper(numerator) / from_paper(denominator) if both else from_paper(1.0)
  return reader.number("attention_factor", default=magnitude)
