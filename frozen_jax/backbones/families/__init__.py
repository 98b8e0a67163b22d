"""The model families as data; see `table` for what a family is, one file for each kin."""

from collections.abc import Mapping
from typing import Any

from frozen_jax.backbones.families import encoders, gemma, gpt, llama
from frozen_jax.backbones.families.settings import Settings
from frozen_jax.backbones.families.table import Family as Family
from frozen_jax.backbones.families.table import Format as Format
from frozen_jax.core.errors import UserError

FAMILIES = (*llama.FAMILIES, *gemma.FAMILIES, *gpt.FAMILIES, *encoders.FAMILIES)


def family_of(name: Any, form: Format, where: str) -> Family:
  """The family that calls itself `name` in this format.

  Raises:
    UserError: none does; the message lists those there are.
  """
  own = {getattr(family, f"{form}_name"): family for family in FAMILIES}
  own.pop("", None)
  if name not in own:
    known = ", ".join(sorted(own))
    raise UserError(f"{where} holds a model of type {name!r}; the types that can be read: {known}")
  return own[name]


def read_config(family: Family, form: Format, stored: Mapping[str, Any], where: str) -> Any:
  """The settings of a file (None counts as absent) -> the config of the family's network.

  Raises:
    UserError: a setting is missing, of the wrong type or not understood; the message names all.
  """
  settings = Settings(stored, where)
  try:
    config = (family.read_hf if form == "hf" else family.read_gguf)(settings)
  except (ValueError, ArithmeticError) as error:
    settings.finish()  # if a setting was missing or odd, that is why
    raise UserError(f"{where} describes no model: {error}") from None
  settings.finish()
  return config
