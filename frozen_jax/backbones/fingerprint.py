"""The fingerprint of a frozen model: a hash that names its stored weights.

It depends on the tensors as stored (name, stored type, shape, bytes) and on nothing else: not on
the dtype, mesh or quantisation they are loaded into, nor on how they are split over files.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Collection

from tqdm import tqdm

from frozen_jax.backbones.assemble import Stored


def digests(
  stored: Stored, progress: bool = True, only: Collection[str] | None = None
) -> dict[str, str]:
  """Tensor name -> SHA-256 (hex) over its stored type, shape and bytes, sorted by name.

  `only`: the tensors that count (None: all), for a model of which a part is read.
  """

  def of(name: str) -> tuple[str, int]:
    kind, data = stored.identity(name)
    digest = hashlib.sha256(f"{kind} {list(stored.shapes[name])}\n".encode())
    digest.update(data)
    return digest.hexdigest(), data.nbytes

  names = sorted(stored.shapes if only is None else only)
  found = {}
  # hashlib lets go of the interpreter's lock, so that threads hash in parallel; few of them, for
  # each may hold a tensor in memory.
  with (
    concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    tqdm(desc="fingerprint", unit="B", unit_scale=True, disable=not progress, delay=2) as bar,
  ):
    for name, (digest, size) in zip(names, pool.map(of, names), strict=True):
      found[name] = digest
      bar.update(size)
  return found


def combine(tensors: dict[str, str]) -> str:
  """The digests of all tensors -> the fingerprint of the model, 64 hex digits."""
  lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
  return hashlib.sha256(lines.encode()).hexdigest()
