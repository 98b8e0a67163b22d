"""The interface of a model's file or folder, whatever its format, to the code that loads it."""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from frozen_jax.backbones.families.table import Format

Index = tuple[slice, ...]


@runtime_checkable
class TensorReader(Protocol):
  """reads_slices: whether reading a part of a tensor reads only the bytes of that part."""

  reads_slices: bool

  def read(self, name: str, index: Index) -> np.ndarray:
    """A part of a tensor, as floating point numbers if it stores any; may be a view of the file."""
    ...


@runtime_checkable
class StoredTensors(TensorReader, Protocol):
  """The tensors of a model in its file or folder.

  location: the file or folder, for messages. format: determines the tensors' names. shapes: name ->
  shape, row-major. dtypes: name -> stored dtype, as the format calls it. float_dtypes: the stored
  dtypes that are read as floating point numbers. duplicates: name -> where else it is stored.
  """

  location: str
  format: Format
  shapes: Mapping[str, tuple[int, ...]]
  dtypes: Mapping[str, str]
  float_dtypes: Collection[str]
  duplicates: Mapping[str, str]

  def num_bytes(self, name: str) -> int:
    """The stored size of a tensor."""
    ...

  def raw_bytes(self, name: str) -> np.ndarray:
    """The stored bytes, uint8 [N] (for the fingerprint)."""
    ...
