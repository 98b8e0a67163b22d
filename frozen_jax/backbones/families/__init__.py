"""The model families as data (`table` defines a family); related families share a file."""

from collections.abc import Mapping
from typing import Any

from frozen_jax.backbones.families import encoders, gemma, gpt, llama
from frozen_jax.backbones.families.config_reader import ConfigReader
from frozen_jax.backbones.families.table import Family as Family
from frozen_jax.backbones.families.table import Format as Format
from frozen_jax.core.errors import UserError

FAMILIES = (*llama.FAMILIES, *gemma.FAMILIES, *gpt.FAMILIES, *encoders.FAMILIES)


def family_of(name: Any, form: Format, where: str) -> Family:
  """The family whose model type is `name` in this format.

  Raises:
    UserError: there is none; the message lists the known types.
  """
  by_name = {getattr(family, f"{form}_name"): family for family in FAMILIES}
  by_name.pop("", None)
  if not isinstance(name, str) or name not in by_name:
    known = ", ".join(sorted(by_name))
    raise UserError(f"{where} holds a model of type {name!r}; the types that can be read: {known}")
  return by_name[name]


def read_config(family: Family, form: Format, stored: Mapping[str, Any], where: str) -> Any:
  """The keys and values of a file (None counts as absent) -> the config of the family's network.

  Raises:
    UserError: keys are missing, of the wrong type or not understood; the message names all.
  """
  reader = ConfigReader(stored, where)
  try:
    config = (family.read_hf if form == "hf" else family.read_gguf)(reader)
  except (ValueError, ArithmeticError) as error:
    reader.finish()  # missing or wrong keys are the likely cause
    raise UserError(f"{where} describes no model: {error}") from None
  reader.finish()
  return config
