"""The definition of a model family: readers of its configs, and a table of its tensors' names.

A family is data, not a class: to add one, add a `Family` to the file of related families
(docs/extending.md). HF names and keys are those of transformers' `config.json` and safetensors
files; GGUF names and metadata are those of llama.cpp (docs/gguf.md of ggml;
gguf-py/gguf/constants.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from frozen_jax.backbones.families.config_reader import ConfigReader

Format = Literal["hf", "gguf"]
ReadConfig = Callable[[ConfigReader], Any]  # -> the config of the family's network


@runtime_checkable
class Network(Protocol):
  """The forward pass: `decoder` or `encoder`, a module of pure functions."""

  PARAM_AXES: Mapping[str, tuple[str | None, ...]]

  def param_shapes(self, config: Any, dtype: Any = ...) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Part:
  """One of several matrices that are fused in a tensor, whose outputs are [groups, sum(sizes)].

  layout(config) -> (groups, sizes); this matrix is number `index` of each group.
  """

  layout: Callable[[Any], tuple[int, tuple[int, ...]]]
  index: int


@dataclasses.dataclass(frozen=True)
class TensorSource:
  """A stored tensor, and how an array of the parameter tree is made from it.

  name: `{layer}` and `{expert}` make the array a stack of tensors. transpose: stored [out, in],
  used as [in, out]. part: where the tensor is fused, which part the array is. permuted: the config
  field with the number of heads in whose rows llama.cpp interleaves the two rotary halves. offset:
  added to the stored numbers. first: the first layer that has the tensor; the stack starts there.
  """

  name: str
  transpose: bool = False
  part: Part | None = None
  permuted: str | None = None
  offset: float = 0.0
  first: int = 0


@dataclasses.dataclass(frozen=True)
class TensorKey:
  """The source of an array of the tree in either format; None: the format does not have it."""

  path: str
  hf: TensorSource | None
  gguf: TensorSource | None = None


@dataclasses.dataclass(frozen=True)
class Family:
  """One family of models.

  hf_name, gguf_name: its model type in either format ("" where it has none). network: the module
  with its forward pass. read_hf, read_gguf: its keys and values -> the network's config. prefix: of
  tensor names, absent in a checkpoint of the model without its head. derived: stored tensors
  (regular expressions) that are not loaded: they follow from the config, or are other tasks' heads.
  aliases: other names of tensors in HF files: a regular expression and its replacement. tied_heads:
  tensors of other tasks' heads in HF files that are the token table where the model is tied.
  """

  hf_name: str
  network: Network
  keys: tuple[TensorKey, ...]
  read_hf: ReadConfig
  gguf_name: str = ""
  read_gguf: ReadConfig | None = None
  prefix: str = ""
  derived: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()
  tied_heads: tuple[str, ...] = ()


def linear_keys(
  path: str,
  hf: str | None,
  gguf: str | None = None,
  *,
  hf_part: Part | None = None,
  gguf_part: Part | None = None,
  permuted: str | None = None,
  stored_in_out: bool = False,
) -> tuple[TensorKey, TensorKey]:
  """The keys of a linear layer's kernel and bias; `hf` and `gguf` without `.weight` and `.bias`.

  stored_in_out: the HF format stores [in, out], as GPT-2's Conv1D does; GGUF never does.
  """

  def sources(part: str, name: str) -> tuple[TensorSource | None, TensorSource | None]:
    kernel = part == "kernel"
    return (
      TensorSource(f"{hf}.{name}", kernel and not stored_in_out, hf_part) if hf else None,
      TensorSource(f"{gguf}.{name}", kernel, gguf_part, permuted) if gguf else None,
    )

  kernel, bias = sources("kernel", "weight"), sources("bias", "bias")
  return TensorKey(f"{path}/kernel", *kernel), TensorKey(f"{path}/bias", *bias)


def norm_keys(path: str, hf: str | None, gguf: str | None = None, gguf_offset: float = 0.0):
  """The keys of a norm's scale and bias; gguf_offset: added to the scale stored in GGUF."""
  scale = TensorSource(f"{gguf}.weight", offset=gguf_offset) if gguf else None
  bias = TensorSource(f"{gguf}.bias") if gguf else None
  return (
    TensorKey(f"{path}/scale", TensorSource(f"{hf}.weight") if hf else None, scale),
    TensorKey(f"{path}/bias", TensorSource(f"{hf}.bias") if hf else None, bias),
  )


def embedding_keys(path: str, hf: str, gguf: str | None = None) -> tuple[TensorKey]:
  """The key of an embedding table, which is not transposed."""
  return (
    TensorKey(path, TensorSource(f"{hf}.weight"), TensorSource(f"{gguf}.weight") if gguf else None),
  )
