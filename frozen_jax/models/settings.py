"""Which frozen model an experiment stands on, as sections of a config. Imports no jax."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.dtypes import CACHE_KINDS, QUANTIZATION_KINDS, WEIGHT_DTYPES
from frozen_jax.core.remat import REMAT_POLICIES


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
  """The frozen LM, and a frozen text encoder."""

  section: ClassVar[str] = "model"

  name: str = setting(
    "smollm2-135m-instruct",
    "built-in name, HF folder, .gguf file or hf:owner/name",
    affects_result=False,  # its fingerprint does
    nonempty=True,
  )
  num_layers: int = setting(
    0, "at most so many of the LM's layers, from the first on, to try a job out; 0: all", at_least=0
  )
  dtype: str = setting("float32", "of the frozen weights", choices=WEIGHT_DTYPES)
  quantize: str = setting("", "keep the matrices at fewer bits", choices=("", *QUANTIZATION_KINDS))
  cache: str = setting(
    "", "int8: keep keys and values of texts that are continued at 8 bits", choices=CACHE_KINDS
  )
  encoder: str = setting(
    "",
    "a text encoder for methods that have one: built-in name, HF folder, hf:owner/name",
    affects_result=False,  # as `name`
  )
  remat: str = setting(
    "none",
    "what is recomputed in the backward pass: nothing that takes a product with a weight matrix,"
    " all but attention, or the full layer; offload: nothing, but it waits in the host's memory",
    affects_result=False,
    choices=REMAT_POLICIES,
  )
  sizes: Mapping[str, Any] = setting(
    {},
    "for tools.cost: fields of DecoderConfig of a model that cannot be had",
    affects_result=False,
  )
  encoder_sizes: Mapping[str, Any] = setting(
    {},
    "for tools.cost: fields of EncoderConfig of an encoder that cannot be had",
    affects_result=False,
  )

  def as_trained_on(self) -> "ModelSettings":
    """With the default of what training does not read: texts are not continued in it."""
    return dataclasses.replace(self, cache="")
