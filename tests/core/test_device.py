"""Sizes by backend, and the memory that they are chosen by."""

from types import SimpleNamespace

import jax
import pytest

from frozen_jax.core import device


@pytest.mark.parametrize("backend, size", [("cpu", 1), ("gpu", 2), ("tpu", 2)])
def test_sizes_go_by_the_backend(monkeypatch, backend, size):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert device.per_backend({"cpu": 1, "gpu": 2}) == size


@pytest.mark.parametrize("stats, memory", [({"bytes_limit": 100}, 100), (None, 2**33)])
def test_memory_is_that_of_one_device(monkeypatch, stats, memory):
  one = SimpleNamespace(memory_stats=lambda: stats)
  monkeypatch.setattr(jax, "local_devices", lambda: [one] * 2)
  device.memory_bytes.cache_clear()
  assert device.memory_bytes() == memory
  device.memory_bytes.cache_clear()


@pytest.mark.parametrize(
  "capabilities, expected", [(["8.0", "9.0"], True), (["7.5"], False), (None, False)]
)
def test_cudnn_has_attention_for_gpus_from_ampere_on(monkeypatch, capabilities, expected):
  def local_devices(backend):
    if capabilities is None:
      raise RuntimeError(f"Unknown backend {backend}")
    return [SimpleNamespace(compute_capability=one) for one in capabilities]

  monkeypatch.setattr(jax, "local_devices", local_devices)
  device.has_cudnn_attention.cache_clear()
  assert device.has_cudnn_attention() is expected
  device.has_cudnn_attention.cache_clear()
