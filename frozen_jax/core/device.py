"""Sizes that depend on the devices of this process: by backend, and by their memory."""

import functools
from collections.abc import Mapping

import jax

_DEFAULT_MEMORY = 2**33  # bytes, of a device that does not report its memory


def per_backend(sizes: Mapping[str, int]) -> int:
  """The size for the backend in use, of `{"cpu": ..., "gpu": ..., "tpu": ...}`.

  A backend that is not among them uses "gpu".
  """
  return sizes.get(jax.default_backend(), sizes["gpu"])


@functools.cache
def memory_bytes() -> int:
  """The memory of one device; 8 GiB where it does not report it (CPUs)."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", _DEFAULT_MEMORY)


@functools.cache
def has_cudnn_attention() -> bool:
  """Whether cuDNN has attention for the GPUs of this process: NVIDIA's, from Ampere on."""
  try:
    devices = jax.local_devices(backend="cuda")
  except RuntimeError:
    return False
  return all(float(device.compute_capability) >= 8 for device in devices)
