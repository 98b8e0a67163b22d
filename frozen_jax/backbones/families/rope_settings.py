"""The settings of rotary positions, in the spellings that config.json files have for them."""

import math

from frozen_jax.backbones import rope
from frozen_jax.backbones.config import Rope
from frozen_jax.backbones.families.settings import Settings

_ALIASES = {"su": "longrope", "": "default"}
_KNOWN = (*rope.KINDS, *_ALIASES)


def read_rope(
  s: Settings, context: int, theta: float = 10_000.0, fraction: float = 1.0
) -> tuple[Rope, float]:
  """The rotary positions and the fraction of a head that they rotate.

  Newer files say it all in `rope_parameters`, older ones in `rope_theta`, `rope_scaling` and
  `partial_rotary_factor`. context, theta, fraction: what holds where the file is silent.
  """
  theta = s.number("rope_theta", default=theta)
  fraction = s.number("partial_rotary_factor", default=fraction)
  original = s.whole("original_max_position_embeddings", default=None)
  old, new = s.inner("rope_scaling"), s.inner("rope_parameters")
  inner = new if "rope_parameters" in s else old
  theta = inner.number("rope_theta", default=theta)
  fraction = inner.number("partial_rotary_factor", default=fraction)
  found = scaled(inner, theta, context, original)
  if "rope_parameters" in s and "rope_scaling" in s:  # a file may say it in both spellings
    old.silent("rope_theta", "partial_rotary_factor")
    if scaled(old, theta, context, original) != found:
      s.only(rope_scaling=())
  return found, fraction


def scaled(s: Settings, theta: float, context: int, original: int | None = None) -> Rope:
  """The settings within `rope_parameters` or `rope_scaling` -> how positions are stretched."""
  kind = s.word("rope_type", "type", default="default", among=_KNOWN)
  kind = _ALIASES.get(kind, kind)
  if kind not in rope.KINDS:
    s.silent("*")  # the kind is the fault, not what it asks for
    return Rope(theta)
  if kind == "default":
    return Rope(theta)
  if kind == "linear":
    return Rope(theta, kind, s.number("factor"))
  if kind == "dynamic":
    s.silent("original_max_position_embeddings")
    return Rope(theta, kind, s.number("factor"), original=context)
  original = s.whole("original_max_position_embeddings", default=original or context)
  if kind == "llama3":
    low, high = s.number("low_freq_factor"), s.number("high_freq_factor")
    return Rope(theta, kind, s.number("factor"), original, low, high)
  factor = s.number("factor", default=context / original)
  if kind == "yarn":
    return Rope(
      theta,
      kind,
      factor,
      original,
      slow=s.number("beta_slow", default=1.0),
      fast=s.number("beta_fast", default=32.0),
      truncate=s.flag("truncate", default=True),
      magnitude=_yarn_magnitude(s, factor),
    )
  magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  return Rope(
    theta,
    kind,
    factor,
    original,
    short=s.numbers("short_factor"),
    long=s.numbers("long_factor"),
    magnitude=s.number("attention_factor", default=magnitude),
  )


def _yarn_magnitude(s: Settings, factor: float) -> float:
  """How much cos and sin grow, as the paper advises (equation 22) unless the file says."""

  def advised(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  numerator, denominator = s.number("mscale", default=0.0), s.number("mscale_all_dim", default=0.0)
  both = numerator and denominator
  magnitude = advised(numerator) / advised(denominator) if both else advised(1.0)
  return s.number("attention_factor", default=magnitude)
