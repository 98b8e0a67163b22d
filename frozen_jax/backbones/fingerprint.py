"""The fingerprint of a frozen model: a hash that names its stored weights.

It depends on the tensors as stored (name, stored type, shape, bytes) and on nothing else: not on
the dtype, mesh or quantisation they are loaded into, nor on how they are split over files or
processes.
"""

import concurrent.futures
import hashlib
import json
import math
import os
from collections.abc import Collection

import jax
from tqdm import tqdm

from frozen_jax.backbones.assemble import Stored
from frozen_jax.core.errors import UserError
from frozen_jax.sharding import hosts


def digests(
  stored: Stored, progress: bool = True, only: Collection[str] | None = None
) -> dict[str, str]:
  """Tensor name -> SHA-256 (hex) over its stored type, shape and bytes, sorted by name.

  `only`: the tensors that count (None: all), for a model of which a part is read. With
  several processes each reads its share of the tensors, and all of them must call this.

  Raises:
    UserError: the processes do not see the same tensors.
  """
  names = sorted(stored.shapes if only is None else only)
  headers = {name: _header(stored, name) for name in names}
  largest_first = sorted(names, key=lambda name: -math.prod(stored.shapes[name]))
  own = sorted(largest_first[jax.process_index() :: jax.process_count()])
  seen = hashlib.sha256(json.dumps(headers).encode()).hexdigest()
  said = json.dumps([seen, _hash(own, stored, progress)]).encode()
  everyones = [json.loads(each) for each in hosts.gather_bytes(said)]
  if any(others != seen for others, _ in everyones):
    raise UserError(
      f"the processes of this run see different tensors in {stored.where}; give all of them the "
      "same files"
    )
  found = {name: digest for _, share in everyones for name, digest in share.items()}
  return {name: found[name] for name in names}


def combine(tensors: dict[str, str]) -> str:
  """The digests of all tensors -> the fingerprint of the model, 64 hex digits."""
  lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
  return hashlib.sha256(lines.encode()).hexdigest()


def _hash(names: list[str], stored: Stored, progress: bool) -> dict[str, str]:
  def of(name: str) -> tuple[str, int]:
    digest = hashlib.sha256(f"{_header(stored, name)}\n".encode())
    data = stored.content(name)
    digest.update(data)
    return digest.hexdigest(), data.nbytes

  found = {}
  # hashlib lets go of the interpreter's lock, so that threads hash in parallel.
  with (
    concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    tqdm(desc="fingerprint", unit="B", unit_scale=True, disable=not progress, delay=2) as bar,
  ):
    for name, (digest, size) in zip(names, pool.map(of, names), strict=True):
      found[name] = digest
      bar.update(size)
  return found


def _header(stored: Stored, name: str) -> str:
  return f"{stored.types[name]} {list(stored.shapes[name])}"
