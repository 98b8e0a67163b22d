"""What suits the devices of this process: sizes chosen by how fast and how large they are."""

import functools
from collections.abc import Mapping

import jax

_UNKNOWN = 2**33  # bytes of a device that does not tell its memory


def suited(sizes: Mapping[str, int]) -> int:
  """The size for the backend in use, of `{"cpu": ..., "gpu": ...}`; others take that of a GPU."""
  return sizes.get(jax.default_backend(), sizes["gpu"])


@functools.cache
def memory_bytes() -> int:
  """The memory of all devices together; those that do not tell it, CPUs, count as 8 GiB."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", _UNKNOWN) * (jax.device_count() if stats else 1)
