"""An array as the bytes that `torch.save` makes of a tensor, written without torch.

The format (torch/serialization.py): a zip file that is not compressed, in which `data.pkl` builds
the tensor from a storage and `data/0` holds the storage's numbers. `data.pkl` is a fixed sequence
of opcodes of pickle's protocol 2; it is written here, and nothing of the kind is ever read.
"""

import io
import struct
import zipfile

import numpy as np
from jaxtyping import Float

_FOLDER = "archive"


def torch_bytes(array: Float[np.ndarray, "..."]) -> bytes:
  """The file of a contiguous float32 tensor; the same bytes for the same array."""
  numbers = np.ascontiguousarray(array, "<f4")
  records = {
    "data.pkl": _tensor_opcodes(numbers.shape),
    "byteorder": b"little",
    "data/0": numbers.tobytes(),
    "version": b"3\n",
  }
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, data in records.items():
      archive.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}"), data)  # dated 1980
  return file.getvalue()


def _tensor_opcodes(shape: tuple[int, ...]) -> bytes:
  """`_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
  count = int(np.prod(shape))
  strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
  storage = b"".join(
    (b"(", _text("storage"), _name("torch", "FloatStorage"), _text("0"), _text("cpu"), _int(count))
  )
  arguments = (
    storage + b"tQ",  # a tuple, and the persistent object that it names
    _int(0),
    b"(" + b"".join(map(_int, shape)) + b"t",
    b"(" + b"".join(map(_int, strides)) + b"t",
    b"\x89",  # False
    _name("collections", "OrderedDict") + b")R",  # called with ()
  )
  rebuild = _name("torch._utils", "_rebuild_tensor_v2")
  return b"\x80\x02" + rebuild + b"(" + b"".join(arguments) + b"tR."


def _name(module: str, name: str) -> bytes:
  return b"c" + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
  return b"X" + struct.pack("<I", len(text)) + text.encode()


def _int(number: int) -> bytes:
  return b"J" + struct.pack("<i", number)
