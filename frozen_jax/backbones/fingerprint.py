"""The fingerprint of a frozen model: a hash of its stored weights.

It depends only on the tensors as stored (name, stored dtype, shape, bytes): not on the dtype, mesh
or quantisation with which they are loaded, nor on how they are split over files or processes.
"""

import concurrent.futures
import hashlib
import json
import math
import os
from collections.abc import Collection

import jax

from frozen_jax.backbones.stored_tensors import StoredTensors
from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar
from frozen_jax.sharding import hosts


def tensor_digests(
  stored: StoredTensors, progress: bool = True, names: Collection[str] | None = None
) -> dict[str, str]:
  """Tensor name -> SHA-256 (hex) over its stored dtype, shape and bytes, sorted by name.

  `names`: of the tensors to hash (None: all), for a model that is loaded in part. With several
  processes each hashes its share of the tensors, and all of them must call this.

  Raises:
    UserError: the processes do not see the same tensors.
  """
  names = sorted(stored.shapes if names is None else names)
  headers = {name: _header(stored, name) for name in names}
  largest_first = sorted(names, key=lambda name: -math.prod(stored.shapes[name]))
  share = sorted(largest_first[jax.process_index() :: jax.process_count()])
  headers_hash = hashlib.sha256(json.dumps(headers).encode()).hexdigest()
  message = json.dumps([headers_hash, _hash_tensors(share, stored, progress)]).encode()
  messages = [json.loads(each) for each in hosts.gather_bytes(message)]
  if any(other_hash != headers_hash for other_hash, _ in messages):
    raise UserError(
      f"the processes of this run see different tensors in {stored.location}; give all of them the "
      "same files"
    )
  digests = {name: digest for _, hashed in messages for name, digest in hashed.items()}
  return {name: digests[name] for name in names}


def combine_digests(digests: dict[str, str], num_layers: int | None = None) -> str:
  """The digests of all tensors -> the fingerprint of the model, 64 hex digits.

  num_layers: how many of its layers are used; None: all.
  """
  lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
  lines += "" if num_layers is None else f"layers {num_layers}\n"
  return hashlib.sha256(lines.encode()).hexdigest()


def _hash_tensors(names: list[str], stored: StoredTensors, progress: bool) -> dict[str, str]:
  def hash_tensor(name: str) -> tuple[str, int]:
    digest = hashlib.sha256(f"{_header(stored, name)}\n".encode())
    data = stored.raw_bytes(name)
    digest.update(data)
    return digest.hexdigest(), data.nbytes

  digests = {}
  # hashlib releases the GIL, so that threads hash in parallel.
  with (
    concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    ProgressBar(
      desc="fingerprint", unit="B", unit_scale=True, disable=not progress, delay=2
    ) as bar,
  ):
    for name, (digest, size) in zip(names, pool.map(hash_tensor, names), strict=True):
      digests[name] = digest
      bar.update(size)
  return digests


def _header(stored: StoredTensors, name: str) -> str:
  return f"{stored.dtypes[name]} {list(stored.shapes[name])}"
