"""What a model family is: two readers of settings, and a table that says where each tensor goes.

A family is data, not a class: to add one, add a `Family` to the file of its kin (CONTRIBUTING.md).
HF names and settings are those of transformers' `config.json` and safetensors files; GGUF names and
metadata are those of llama.cpp (docs/gguf.md of ggml; gguf-py/gguf/constants.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from frozen_jax.backbones.families.settings import Settings

Format = Literal["hf", "gguf"]
Reader = Callable[[Settings], Any]  # settings -> the config of the family's network


class Network(Protocol):
  """What computes: `decoder` or `encoder`, a module of pure functions."""

  PARAM_AXES: Mapping[str, tuple[str | None, ...]]

  def param_shapes(self, config: Any, dtype: Any = ...) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a tensor that holds several: its outputs are [groups, sum(sizes)].

  layout(config) -> (groups, sizes); the piece is number `index` of each group.
  """

  layout: Callable[[Any], tuple[int, tuple[int, ...]]]
  index: int


@dataclasses.dataclass(frozen=True)
class Source:
  """A stored tensor, and how an array of ours is made from it.

  name: `{layer}` and `{expert}` make the array a stack. transpose: stored [out, in], kept
  [in, out]. part: it is a piece of the tensor. permuted: the config field with the number of heads
  in whose rows llama.cpp interleaves the two rotary halves. offset: added to what is stored.
  first: the first layer that has it; the stack then counts from there.
  """

  name: str
  transpose: bool = False
  part: Part | None = None
  permuted: str | None = None
  offset: float = 0.0
  first: int = 0


@dataclasses.dataclass(frozen=True)
class Key:
  """Where an array of the tree comes from in either format; None: the format does not have it."""

  path: str
  hf: Source | None
  gguf: Source | None = None


@dataclasses.dataclass(frozen=True)
class Family:
  """One family of models.

  hf_name, gguf_name: what it calls itself in either format ("" where it has none). network: the
  module that computes it. read_hf, read_gguf: its settings -> the network's config. prefix: what
  the names of a bare model's checkpoint lack. derived: stored tensors (regular expressions) that
  are computed from the config anyway, or that belong to other tasks than ours. aliases: other names
  that HF files have for a tensor, as a regular expression and what replaces it.
  """

  hf_name: str
  network: Network
  keys: tuple[Key, ...]
  read_hf: Reader
  gguf_name: str = ""
  read_gguf: Reader | None = None
  prefix: str = ""
  derived: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()


def linear(
  path: str,
  hf: str | None,
  gguf: str | None = None,
  *,
  hf_part: Part | None = None,
  gguf_part: Part | None = None,
  permuted: str | None = None,
  stored_in_out: bool = False,
) -> tuple[Key, Key]:
  """The keys of a product's kernel and bias; the names lack `.weight` and `.bias`.

  stored_in_out: the HF format keeps [in, out], as GPT-2's Conv1D does; GGUF never does.
  """

  def sources(part: str, name: str) -> tuple[Source | None, Source | None]:
    kernel = part == "kernel"
    return (
      Source(f"{hf}.{name}", kernel and not stored_in_out, hf_part) if hf else None,
      Source(f"{gguf}.{name}", kernel, gguf_part, permuted) if gguf else None,
    )

  kernel, bias = sources("kernel", "weight"), sources("bias", "bias")
  return Key(f"{path}/kernel", *kernel), Key(f"{path}/bias", *bias)


def norm(path: str, hf: str | None, gguf: str | None = None, gguf_offset: float = 0.0):
  """The keys of a norm's scale and bias; gguf_offset: added to the scale that GGUF stores."""
  scale = Source(f"{gguf}.weight", offset=gguf_offset) if gguf else None
  bias = Source(f"{gguf}.bias") if gguf else None
  return (
    Key(f"{path}/scale", Source(f"{hf}.weight") if hf else None, scale),
    Key(f"{path}/bias", Source(f"{hf}.bias") if hf else None, bias),
  )


def table(path: str, hf: str, gguf: str | None = None) -> tuple[Key]:
  """The key of an embedding table, whose rows are stored as they are kept."""
  return (Key(path, Source(f"{hf}.weight"), Source(f"{gguf}.weight") if gguf else None),)
